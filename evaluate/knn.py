"""k-NN classification of test images by training images, with the protocols of DINO and DINOv2.

`dino` (arXiv 2104.14294 §F.1, eval_knn.py): votes exp(similarity / temperature), classes are those of the training
images. `dinov2` (arXiv 2304.07193, eval/knn.py): votes are the softmax of similarity / temperature over the
neighbours of the largest k, classes are 0 to the largest training label. The votes of a query differ by one factor, so
the best class is the same, but for sums that rounding makes equal, and so is the top 5 as long as no class number is
without training images: those that are have no votes and come by their number, so that they fill up a top 5 of fewer
than five classes with votes. Where DINOv2 would count such a number as a hit, here a class without training images is
always missed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.checks import Targets, check_features, check_pair, place_labels, warn_of_leaks
from patchssl.evaluate.features import Features
from patchssl.evaluate.metrics import KnnHits
from patchssl.evaluate.neighbours import KnnProtocol, Voters, check_temperature, choose_ks, classify, metric_values
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.scoring import make_row
from patchssl.evaluate.search.index import CosineIndex

PROTOCOLS = {name: KnnProtocol(name=name) for name in ("dino", "dinov2")}

# A query's votes are a row of as many numbers as classes; only gaps in the labels make more than training images.
_MOST_NUMBERED = 1_000_000
_MEANINGS = {
    "dino": {"weight": "exp(similarity / temperature)"},
    "dinov2": {"weight": "softmax(similarity / temperature)", "classes": "0 to the largest training label"},
}


@dataclass(frozen=True, eq=False, slots=True)
class KnnResult:
    """Hits of Q queries.

    Attributes:
        hits: for every k, in ascending order.
        num_train: M, the number of features that were searched.
        num_unknown: queries whose class has no training feature; they count as missed.
    """

    hits: Mapping[int, KnnHits]
    num_train: int
    num_unknown: int


def evaluate(
    train: Features, test: Features, *, ks: Sequence[int], temperature: float, protocol: str = "dino"
) -> KnnResult:
    """Classify test features by their nearest training features.

    Both sets are L2-normalised; one exact search serves every k.

    Args:
        train: (M, D) with labels, any integers; for `dinov2` from 0.
        test: (Q, D) with labels.
        ks: each 1 <= k <= M.
        temperature: of the votes.
        protocol: one of PROTOCOLS, for votes and classes.

    Raises:
        ConfigError: the temperature is not above 0, a k is not in 1 … M, or the protocol is unknown.
        DataError: a set is empty, has no labels, non-finite features or an id twice, the widths differ, or labels
            cannot be class numbers of `dinov2`.
    """
    _check_protocol(protocol)
    check_pair(train, test)
    check_temperature(temperature)
    ks = choose_ks(ks, (), len(train))
    assert train.labels is not None
    assert test.labels is not None
    numbered = protocol == "dinov2"
    if numbered:
        _check_numbers(train.labels)
    found = place_labels(train.labels, test.labels)
    targets = _numbered(found) if numbered else found
    voters = Voters(CosineIndex(train.features), targets.train, len(targets.classes))
    hits = classify(voters, test.features, targets.test, ks=ks, temperature=temperature, softmax=numbered)
    return KnnResult(hits, len(train), found.num_unknown)


def _check_protocol(name: str) -> None:
    if name not in PROTOCOLS:
        raise ConfigError(
            f"protocol {name!r} is unknown to k-NN; allowed: {', '.join(PROTOCOLS)}; few-shot and leave-one-out have "
            "modules of their own"
        )


def _check_numbers(labels: NDArray[np.int64]) -> None:
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= max(_MOST_NUMBERED, len(labels)):
        raise DataError(
            f"training labels are {lowest} to {highest}, and dinov2 takes every number from 0 to the largest for a "
            f"class, at most {max(_MOST_NUMBERED, len(labels)):,}; number the classes from 0, or take --protocol dino"
        )


def _numbered(targets: Targets) -> Targets:
    """Every number from 0 to the largest label as a class, in the place of the labels that occur."""
    return Targets(
        np.arange(targets.classes[-1] + 1),
        targets.classes[targets.train],
        np.where(targets.test < 0, -1, targets.classes[targets.test]),
    )


def score(
    train: Features,
    test: Features,
    *,
    protocol: str = "dino",
    ks: Sequence[int] | None = None,
    temperature: float | None = None,
    features_s: float = 0.0,
    device: str = "cpu",
    seed: int = 0,
) -> Scored:
    """Evaluate features by a named protocol.

    Args:
        train: the training features; their `meta` tells model, data and settings.
        test: the test features.
        protocol: one of PROTOCOLS, which sets what is None below.
        ks: how many neighbours vote.
        temperature: of the votes.
        features_s: how long computing the features took.
        device: where they were computed.
        seed: of the bootstrap intervals, and what fresh weights were drawn from.

    Raises:
        ConfigError: the protocol is unknown, or an option is out of range.
        DataError: the features cannot be evaluated.
    """
    _check_protocol(protocol)
    defaults = PROTOCOLS[protocol]
    temperature = defaults.temperature if temperature is None else temperature
    start = time.perf_counter()
    check_features("training", train)
    chosen = choose_ks(ks, defaults.ks, len(train))
    result = evaluate(train, test, ks=chosen, temperature=temperature, protocol=protocol)
    num_leaked = warn_of_leaks(train, test)
    return make_row(
        task="knn",
        protocol=protocol,
        parts={"train": train, "test": test},
        values=metric_values(result.hits),
        headline=defaults.headline(chosen),
        meaning={"similarity": "cosine", **_MEANINGS[protocol], "temperature": temperature},
        # The headline names the k; further ks beside it change nothing about its meaning.
        settings={"k": list(chosen), "index": "Flat", "num_unknown_class": result.num_unknown},
        seconds={"features": features_s, "evaluate": time.perf_counter() - start},
        device=device,
        seed=seed,
        details={"num_test_in_train": num_leaked},
    )
