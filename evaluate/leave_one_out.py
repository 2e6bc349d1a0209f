"""k-NN classification of labelled images without a test part: each by all others.

Votes and classes are those of `dino` (see `patchssl.evaluate.knn`). An image whose class has no other image cannot be
found, whatever the features: it votes for others, and leaves the mean.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import DataError
from patchssl.evaluate.checks import check_features, check_ids
from patchssl.evaluate.features import Features
from patchssl.evaluate.metrics import KnnHits
from patchssl.evaluate.neighbours import KnnProtocol, Voters, check_temperature, choose_ks, classify, metric_values
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.scoring import make_row
from patchssl.evaluate.search.index import CosineIndex

logger = logging.getLogger(__name__)

PROTOCOL = KnnProtocol(name="leave-one-out")


@dataclass(frozen=True, eq=False, slots=True)
class LeaveOneOutResult:
    """Hits of M images.

    Attributes:
        hits: for every k, in ascending order.
        counted: (M,) bool: whether the image's class has another image.
    """

    hits: Mapping[int, KnnHits]
    counted: NDArray[np.bool_]


def evaluate(features: Features, *, ks: Sequence[int], temperature: float) -> LeaveOneOutResult:
    """Classify each image by its nearest others.

    Args:
        features: (M, D) with labels, any integers.
        ks: each 1 <= k < M.
        temperature: of the votes.

    Raises:
        ConfigError: the temperature is not above 0, or a k is not in 1 … M - 1.
        DataError: there are no labels, non-finite features or an id twice, or no class has two images.
    """
    check_features("labelled", features)
    check_ids("labelled", features)
    check_temperature(temperature)
    assert features.labels is not None
    classes, places, counts = np.unique(features.labels, return_inverse=True, return_counts=True)
    counted = counts[places] > 1
    if not counted.any():
        raise DataError(
            f"each of the {len(classes)} classes has one image only; leave-one-out needs another of the same class"
        )
    if not counted.all():
        logger.warning(
            "%d of %d images are alone in their class; they are left out of the mean",
            np.count_nonzero(~counted),
            len(features),
        )
    ks = choose_ks(ks, (), len(features) - 1)
    voters = Voters(CosineIndex(features.features), places, len(classes))
    rows = np.arange(len(features))
    hits = classify(voters, features.features, places, ks=ks, temperature=temperature, own_rows=rows)
    return LeaveOneOutResult(hits, counted)


def score(
    features: Features,
    *,
    ks: Sequence[int] | None = None,
    temperature: float | None = None,
    features_s: float = 0.0,
    device: str = "cpu",
    seed: int = 0,
) -> Scored:
    """Evaluate features by the protocol `leave-one-out`.

    Args:
        features: of labelled images; their `meta` tells model, data and settings.
        ks: how many neighbours vote; None for those of 10, 20, 100, 200 that there are.
        temperature: of the votes; None for 0.07.
        features_s: how long computing the features took.
        device: where they were computed.
        seed: of the bootstrap intervals, and what fresh weights were drawn from.

    Raises:
        ConfigError: an option is out of range.
        DataError: the features cannot be evaluated.
    """
    start = time.perf_counter()
    temperature = PROTOCOL.temperature if temperature is None else temperature
    check_features("labelled", features)
    if len(features) < 2:
        raise DataError("there is one labelled image only; leave-one-out needs another of the same class")
    chosen = choose_ks(ks, PROTOCOL.ks, len(features) - 1)
    result = evaluate(features, ks=chosen, temperature=temperature)
    values = metric_values(result.hits)
    return make_row(
        task="knn",
        protocol=PROTOCOL.name,
        parts={"labelled": features},
        values={name: np.where(result.counted, hits, np.nan) for name, hits in values.items()},
        headline=PROTOCOL.headline(chosen),
        meaning={"similarity": "cosine", "weight": "exp(similarity / temperature)", "temperature": temperature},
        settings={"k": list(chosen), "index": "Flat", "num_alone_in_class": int(np.count_nonzero(~result.counted))},
        seconds={"features": features_s, "evaluate": time.perf_counter() - start},
        device=device,
        seed=seed,
    )
