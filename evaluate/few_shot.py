"""k-NN classification with few training images of each class, drawn several times.

DINOv2's script (arXiv 2304.07193, eval/knn.py, `--n-per-class-list`, `--n-tries`) takes a number of images of each
class, or all of a class that has fewer, and averages over draws; so does this. Its defaults are all images and one
draw; here they are 16 images and 5 draws. Its k are at most the number of images of a class; here at most the number of
all drawn images, as in DINOv3's. Votes and classes are those of `dino`.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import ConfigError
from patchssl.evaluate.checks import check_features, check_pair, place_labels, warn_of_leaks
from patchssl.evaluate.features import Features
from patchssl.evaluate.metrics import two_way_interval
from patchssl.evaluate.neighbours import KnnProtocol, Voters, check_temperature, classify, metric_values
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.scoring import make_row
from patchssl.evaluate.search.index import CosineIndex

logger = logging.getLogger(__name__)

PROTOCOL = KnnProtocol(name="few-shot")
SHOTS = 16
DRAWS = 5

_DRAWING = 1  # keeps the draws apart from what else follows from the seed


@dataclass(frozen=True, eq=False, slots=True)
class FewShotResult:
    """Hits of Q queries in every draw.

    Attributes:
        ks: how many neighbours voted, ascending.
        hits: `top1@kK` and `top5@kK` → (draws, Q) bool, in the order of ks.
        num_drawn: training images of a draw.
        num_short: classes with fewer images than asked for, of which all were taken.
        num_unknown: queries whose class has no training feature; they count as missed.
    """

    ks: tuple[int, ...]
    hits: Mapping[str, NDArray[np.bool_]]
    num_drawn: int
    num_short: int
    num_unknown: int


def num_drawn(labels: NDArray[np.int64], shots: int) -> int:
    """How many of the labelled images a draw takes."""
    return int(np.minimum(np.unique(labels, return_counts=True)[1], shots).sum())


def draw_rows(train: Features, *, shots: int, draw: int, seed: int) -> NDArray[np.int64]:
    """Draw training images of each class.

    The images of a class are shuffled and the first taken, so that more shots of one draw hold those of fewer. Where
    the images have ids, their order in the set does not matter.

    Args:
        train: with labels.
        shots: images of each class; all of a class that has fewer.
        draw: its number, from 0.
        seed: not negative.

    Returns:
        Rows, ascending.
    """
    assert train.labels is not None
    generator = np.random.default_rng([seed, _DRAWING, draw])
    order = np.argsort(train.labels, kind="stable") if train.ids is None else np.lexsort((train.ids, train.labels))
    starts = np.flatnonzero(np.diff(train.labels[order], prepend=train.labels[order[0]] - 1))
    return np.sort(
        np.concatenate([generator.permutation(rows)[:shots] for rows in np.split(order, starts[1:])]).astype(np.int64)
    )


def choose_ks(given: Sequence[int] | None, num_voters: int) -> tuple[int, ...]:
    """Clip every k to the number of drawn images, with a warning.

    Args:
        given: what the user asked for; None for the protocol's.
        num_voters: of a draw.

    Returns:
        Each k once, ascending.

    Raises:
        ConfigError: a k that the user gave is below 1, or there is none.
    """
    if given is not None and (not given or min(given) < 1):
        raise ConfigError(f"k is {', '.join(map(str, given)) or 'empty'}; each must be at least 1")
    wanted = PROTOCOL.ks if given is None else tuple(sorted(set(given)))
    clipped = tuple(sorted({min(k, num_voters) for k in wanted}))
    if clipped != wanted:
        logger.warning(
            "a draw has %d training images, too few for k = %s; evaluating k = %s",
            num_voters,
            ", ".join(map(str, wanted)),
            ", ".join(map(str, clipped)),
        )
    return clipped


def evaluate(
    train: Features,
    test: Features,
    *,
    shots: int,
    draws: int,
    ks: Sequence[int] | None,
    temperature: float,
    seed: int,
) -> FewShotResult:
    """Classify test features by the nearest of few training features, in every draw.

    Args:
        train: (M, D) with labels, any integers.
        test: (Q, D) with labels.
        shots: training images of each class.
        draws: how often they are drawn.
        ks: clipped to the number of drawn images; None for the protocol's.
        temperature: of the votes.
        seed: of the draws.

    Raises:
        ConfigError: an option is out of range.
        DataError: as `patchssl.evaluate.checks.check_pair`.
    """
    for name, number in (("shots", shots), ("draws", draws)):
        if number < 1:
            raise ConfigError(f"{name} is {number}; it must be at least 1")
    check_pair(train, test)
    check_temperature(temperature)
    assert train.labels is not None
    assert test.labels is not None
    targets = place_labels(train.labels, test.labels)
    num_short = int(np.count_nonzero(np.bincount(targets.train) < shots))
    if num_short:
        logger.warning(
            "%d of %d classes have fewer than %d training images; every draw takes all of theirs",
            num_short,
            len(targets.classes),
            shots,
        )
    num_voters = num_drawn(train.labels, shots)
    ks = choose_ks(ks, num_voters)
    found: list[dict[str, NDArray[np.bool_]]] = []
    for draw in range(draws):
        rows = draw_rows(train, shots=shots, draw=draw, seed=seed)
        voters = Voters(CosineIndex(train.features[rows]), targets.train[rows], len(targets.classes))
        found.append(metric_values(classify(voters, test.features, targets.test, ks=ks, temperature=temperature)))
    hits = {name: np.stack([values[name] for values in found]) for name in found[0]}
    return FewShotResult(ks, hits, num_voters, num_short, targets.num_unknown)


def score(
    train: Features,
    test: Features,
    *,
    shots: int | None = None,
    draws: int | None = None,
    ks: Sequence[int] | None = None,
    temperature: float | None = None,
    features_s: float = 0.0,
    device: str = "cpu",
    seed: int = 0,
) -> Scored:
    """Evaluate features by the protocol `few-shot`.

    Metrics are means over draws and test images, with intervals of `two_way_interval`, since both are samples; the
    outcome of an image is its mean over the draws, and `details` holds the value of every draw.

    Args:
        train: the training features; their `meta` tells model, data and settings.
        test: the test features.
        shots: training images of each class; None for 16.
        draws: None for 5.
        ks: how many neighbours vote; None for 10, 20, 100, 200. Clipped to the number of drawn images.
        temperature: of the votes; None for 0.07.
        features_s: how long computing the features took.
        device: where they were computed.
        seed: of the draws, of the intervals, and what fresh weights were drawn from.

    Raises:
        ConfigError: an option is out of range.
        DataError: the features cannot be evaluated.
    """
    start = time.perf_counter()
    shots, draws = SHOTS if shots is None else shots, DRAWS if draws is None else draws
    temperature = PROTOCOL.temperature if temperature is None else temperature
    check_features("training", train)
    result = evaluate(train, test, shots=shots, draws=draws, ks=ks, temperature=temperature, seed=seed)
    num_leaked = warn_of_leaks(train, test)
    return make_row(
        task="knn",
        protocol=PROTOCOL.name,
        parts={"train": train, "test": test},
        values={name: hits.mean(axis=0) for name, hits in result.hits.items()},
        headline=PROTOCOL.headline(result.ks),
        meaning={
            "similarity": "cosine",
            "weight": "exp(similarity / temperature)",
            "temperature": temperature,
            "shots": shots,
        },
        settings={
            "k": list(result.ks),
            "k_clipped": [k for k in (PROTOCOL.ks if ks is None else ks) if k > result.num_drawn],
            "draws": draws,
            "num_drawn": result.num_drawn,
            "num_short_class": result.num_short,
            "index": "Flat",
            "num_unknown_class": result.num_unknown,
        },
        seconds={"features": features_s, "evaluate": time.perf_counter() - start},
        device=device,
        seed=seed,
        details={
            "num_test_in_train": num_leaked,
            "draws": {name: hits.mean(axis=1).tolist() for name, hits in result.hits.items()},
        },
        intervals={name: two_way_interval(hits, seed=seed) for name, hits in result.hits.items()},
    )
