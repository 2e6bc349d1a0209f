"""k-NN classification with DINO's protocol (arXiv 2104.14294 §F.1, eval_knn.py): features → hits → row."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from patchssl.errors import ConfigError
from patchssl.evaluate.checks import check_features, check_pair, place_labels
from patchssl.evaluate.features import Features
from patchssl.evaluate.index import CosineIndex
from patchssl.evaluate.metrics import KnnHits, knn_hits
from patchssl.evaluate.results import Scored
from patchssl.evaluate.scoring import make_row

logger = logging.getLogger(__name__)

_CHUNK_NEIGHBOURS = 4_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnProtocol:
    """The defaults that a named protocol sets.

    Attributes:
        name: of the protocol.
        ks: how many neighbours vote.
        temperature: of the votes.
        headline_k: the k to show first, where it was evaluated.
    """

    name: str
    ks: tuple[int, ...]
    temperature: float
    headline_k: int


PROTOCOLS = {"dino": KnnProtocol(name="dino", ks=(10, 20, 100, 200), temperature=0.07, headline_k=20)}


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


def choose_ks(given: Sequence[int] | None, defaults: Sequence[int], num_train: int) -> tuple[int, ...]:
    """Decide how many neighbours vote.

    Args:
        given: what the user asked for, or None.
        defaults: the protocol's, of which those above M are left out with a warning; if all are, M itself is taken.
        num_train: M.

    Returns:
        Each k once, ascending.

    Raises:
        ConfigError: a k that the user gave is below 1 or above M.
    """
    if given is not None:
        wrong = [k for k in given if not 1 <= k <= num_train]
        if wrong or not given:
            raise ConfigError(
                f"k is {', '.join(map(str, wrong)) or 'empty'}; allowed: 1 to {num_train}, as many as training images"
            )
        return tuple(sorted(set(given)))
    possible = tuple(k for k in defaults if k <= num_train) or (num_train,)
    if possible != tuple(defaults):
        logger.warning(
            "%d training images are too few for k = %s; evaluating k = %s",
            num_train,
            ", ".join(map(str, defaults)),
            ", ".join(map(str, possible)),
        )
    return possible


def evaluate(train: Features, test: Features, *, ks: Sequence[int], temperature: float) -> KnnResult:
    """Classify test features by their nearest training features.

    Both sets are L2-normalised; one exact search serves every k.

    Args:
        train: (M, D) with labels, any integers.
        test: (Q, D) with labels.
        ks: each 1 <= k <= M.
        temperature: of the votes.

    Raises:
        ConfigError: the temperature is not above 0, or a k is not in 1 … M.
        DataError: a set is empty, has no labels, non-finite features or an id twice, or the widths differ.
    """
    check_pair(train, test)
    if not temperature > 0 or not np.isfinite(temperature):
        raise ConfigError(f"temperature is {temperature}; it must be above 0")
    ks = choose_ks(ks, (), len(train))
    assert train.labels is not None
    assert test.labels is not None
    targets = place_labels(train.labels, test.labels)
    index = CosineIndex(train.features)
    parts: list[dict[int, KnnHits]] = []
    step = max(1, _CHUNK_NEIGHBOURS // max(ks))
    for start in range(0, len(test), step):
        similarities, rows = index.search(test.features[start : start + step], max(ks))
        parts.append(
            knn_hits(
                similarities,
                targets.train[rows],
                targets.test[start : start + step],
                num_classes=len(targets.classes),
                ks=ks,
                temperature=temperature,
            )
        )
    hits = {
        k: KnnHits(np.concatenate([part[k].top1 for part in parts]), np.concatenate([part[k].top5 for part in parts]))
        for k in ks
    }
    return KnnResult(hits, len(train), targets.num_unknown)


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
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol {protocol!r} is unknown to k-NN; allowed: {', '.join(PROTOCOLS)}")
    defaults = PROTOCOLS[protocol]
    temperature = defaults.temperature if temperature is None else temperature
    start = time.perf_counter()
    check_features("training", train)
    result = evaluate(train, test, ks=choose_ks(ks, defaults.ks, len(train)), temperature=temperature)
    headline_k = defaults.headline_k if defaults.headline_k in result.hits else next(iter(result.hits))
    return make_row(
        task="knn",
        protocol=protocol,
        train=train,
        test=test,
        values={f"{name}@k{k}": getattr(hits, name) for k, hits in result.hits.items() for name in ("top1", "top5")},
        headline=f"top1@k{headline_k}",
        meaning={"similarity": "cosine", "weight": "exp(similarity / temperature)", "temperature": temperature},
        # The headline names the k; further ks beside it change nothing about its meaning.
        settings={"k": list(result.hits), "index": "Flat", "num_unknown_class": result.num_unknown},
        seconds={"features": features_s, "evaluate": time.perf_counter() - start},
        device=device,
        seed=seed,
    )
