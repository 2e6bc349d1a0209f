"""Labelled neighbours that vote: what the protocols of k-NN classification share."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import ConfigError
from patchssl.evaluate.metrics import KnnHits, knn_hits
from patchssl.evaluate.search.index import CosineIndex

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
    ks: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    headline_k: int = 20

    def headline(self, ks: Sequence[int]) -> str:
        """The name of the metric to show first, of those for ascending ks."""
        return f"top1@k{self.headline_k if self.headline_k in ks else ks[0]}"


@dataclass(frozen=True, eq=False, slots=True)
class Voters:
    """M training images that vote for their classes.

    Attributes:
        index: their features.
        classes: (M,) in [0, C).
        num_classes: C.
    """

    index: CosineIndex
    classes: NDArray[np.int64]
    num_classes: int


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


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not above 0.

    Raises:
        ConfigError: it is not, or not finite.
    """
    if not temperature > 0 or not np.isfinite(temperature):
        raise ConfigError(f"temperature is {temperature}; it must be above 0")


def classify(
    voters: Voters,
    queries: NDArray[np.float32],
    targets: NDArray[np.int64],
    *,
    ks: Sequence[int],
    temperature: float,
    softmax: bool = False,
    own_rows: NDArray[np.int64] | None = None,
) -> dict[int, KnnHits]:
    """Classify queries by the votes of their nearest voters; one exact search serves every k.

    Args:
        voters: M training images.
        queries: (Q, D) features, normalised here.
        targets: (Q,) true classes in [0, C), -1 for one that is never hit.
        ks: each 1 <= k <= M, or below M with own_rows.
        temperature: of the votes.
        softmax: of `patchssl.evaluate.metrics.knn_hits`.
        own_rows: (Q,) the voter that is the query itself and does not vote for it.

    Returns:
        The hits for every k, in the order of ks.
    """
    parts: list[dict[int, KnnHits]] = []
    most = max(ks)
    step = max(1, _CHUNK_NEIGHBOURS // most)
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        if own_rows is None:
            similarities, rows = voters.index.search(queries[part], most)
        else:
            similarities, rows = _without(*voters.index.search(queries[part], most + 1), own_rows[part])
        parts.append(
            knn_hits(
                similarities,
                voters.classes[rows],
                targets[part],
                num_classes=voters.num_classes,
                ks=ks,
                temperature=temperature,
                softmax=softmax,
            )
        )
    return {
        k: KnnHits(np.concatenate([part[k].top1 for part in parts]), np.concatenate([part[k].top5 for part in parts]))
        for k in ks
    }


def _without(
    similarities: NDArray[np.float32], rows: NDArray[np.int64], own_rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(Q, k + 1) neighbours → (Q, k): without the query's own row, or the last where its own is not among them."""
    others = rows != own_rows[:, None]
    # Not by rank: of images that are equal the lower row comes first, so its own may stand anywhere, or lie beyond.
    others[others.all(axis=1), -1] = False
    shape = (len(rows), rows.shape[1] - 1)
    return similarities[others].reshape(shape), rows[others].reshape(shape)


def metric_values(hits: Mapping[int, Any]) -> dict[str, Any]:
    """Hits by k → outcomes by the name of the metric, `top1@k20`."""
    return {f"{name}@k{k}": getattr(found, name) for k, found in hits.items() for name in ("top1", "top5")}
