"""Metrics: arrays in, one value per query out. No model, no device, no files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import DataError

_CHUNK_VALUES = 4_000_000
TOP_N = 5


@dataclass(frozen=True, slots=True)
class KnnHits:
    """Whether each query's true class is the best, or among the best, after a k-NN vote.

    Attributes:
        top1: (Q,) bool.
        top5: (Q,) bool: among the first min(5, k) classes.
    """

    top1: NDArray[np.bool_]
    top5: NDArray[np.bool_]


def knn_hits(
    similarities: NDArray[np.float32],
    neighbour_classes: NDArray[np.int64],
    targets: NDArray[np.int64],
    *,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
    softmax: bool = False,
) -> dict[int, KnnHits]:
    """Weighted k-NN classification (Wu et al., CVPR 2018, as in DINO, arXiv 2104.14294 §F.1).

    Each of the first k neighbours votes for its class with weight exp(similarity / temperature). Classes are ordered
    by the sum of their votes; of equal sums the lower class number comes first, classes without votes included.

    DINOv2 (arXiv 2304.07193, eval/knn.py) divides the weights by their sum over all K neighbours, whatever k is. That
    is one factor for all classes of a query, so the order is the same but for sums that rounding makes equal.

    Args:
        similarities: (Q, K) of the neighbours, best first.
        neighbour_classes: (Q, K) in [0, num_classes).
        targets: (Q,) true classes; one outside [0, num_classes) is never hit.
        num_classes: C.
        ks: how many neighbours vote, each 1 <= k <= K.
        temperature: above 0.
        softmax: weights are a softmax over the K neighbours.

    Returns:
        The hits for every k.
    """
    num_queries, num_neighbours = similarities.shape
    if not ks or min(ks) < 1 or max(ks) > num_neighbours:
        raise ValueError(f"ks are {tuple(ks)}; allowed: 1 to {num_neighbours}, the number of neighbours given")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    hits = {k: KnnHits(np.zeros(num_queries, bool), np.zeros(num_queries, bool)) for k in ks}
    rows = max(1, _CHUNK_VALUES // (num_classes + num_neighbours))
    for start in range(0, num_queries, rows):
        part = slice(start, start + rows)
        ranks = _vote_ranks(
            _weights(similarities[part], temperature, softmax=softmax),
            neighbour_classes[part],
            targets[part],
            num_classes,
            sorted(set(ks)),
        )
        for k, rank in ranks.items():
            hits[k].top1[part] = rank < 1
            hits[k].top5[part] = rank < min(TOP_N, k)
    return hits


def _weights(similarities: NDArray[np.float32], temperature: float, *, softmax: bool) -> NDArray[np.float64]:
    """(q, K) votes of the neighbours, best first."""
    # One factor for all votes of a query changes no order, and keeps exp finite at any temperature.
    exponents = similarities.astype(np.float64)
    weights: NDArray[np.float64] = np.exp((exponents - exponents[:, :1]) / temperature)
    return weights / weights.sum(axis=1, keepdims=True) if softmax else weights


def _vote_ranks(
    weights: NDArray[np.float64],
    classes: NDArray[np.int64],
    targets: NDArray[np.int64],
    num_classes: int,
    ks: list[int],
) -> dict[int, NDArray[np.int64]]:
    """For each k of ascending ks: (q,) how many classes stand before the true one, beyond any hit if it is unknown."""
    num_queries = len(weights)
    cells = np.arange(num_queries)[:, None] * num_classes + classes  # (q, K)
    known = (targets >= 0) & (targets < num_classes)
    safe = np.where(known, targets, 0)[:, None]  # (q, 1)
    before = np.arange(num_classes) < safe  # (q, C)
    scores = np.zeros((num_queries, num_classes))
    ranks: dict[int, NDArray[np.int64]] = {}
    counted = 0
    for k in ks:
        new = slice(counted, k)
        votes = np.bincount(cells[:, new].ravel(), weights[:, new].ravel(), minlength=scores.size)
        scores += votes.reshape(scores.shape)
        counted = k
        true_score = np.take_along_axis(scores, safe, axis=1)  # (q, 1)
        rank = ((scores > true_score) | ((scores == true_score) & before)).sum(axis=1)
        ranks[k] = np.where(known, rank, max(num_classes, TOP_N))
    return ranks


def class_hits(scores: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Whether each image's true class scores best, or among the best.

    Of equal scores the lower class number comes first, as argmax has it.

    Args:
        scores: (Q, C) finite, the higher the better.
        targets: (Q,) true classes; one outside [0, C) is never hit.

    Returns:
        `top1` (Q,) and `top5` (Q,): the true class is the first, or among the first min(5, C).
    """
    num_classes = scores.shape[1]
    known = (targets >= 0) & (targets < num_classes)
    safe = np.where(known, targets, 0)[:, None]  # (Q, 1)
    true = np.take_along_axis(scores, safe, axis=1)  # (Q, 1)
    rank = ((scores > true) | ((scores == true) & (np.arange(num_classes) < safe))).sum(axis=1)
    return {"top1": known & (rank < 1), "top5": known & (rank < min(TOP_N, num_classes))}


def bootstrap_interval(
    values: NDArray[np.bool_] | NDArray[np.float64], *, seed: int, num_resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani, 1993, chapter 13).

    Args:
        values: (Q,) one value per query, finite.
        seed: of the resampling.
        num_resamples: how many means the percentiles are taken of.
        level: probability between the ends.

    Returns:
        The lower and the upper end.

    Raises:
        DataError: no values, or some are not finite.
    """
    return percentile_interval(bootstrap_means(values, seed=seed, num_resamples=num_resamples), level=level)


def bootstrap_means(
    values: NDArray[np.bool_] | NDArray[np.float64], *, seed: int, num_resamples: int = 2000
) -> NDArray[np.float64]:
    """Means of resamples with replacement.

    A resample is drawn as how often each distinct value occurs in it, which is multinomial: the same distribution as
    drawing Q items with replacement, and quick for hits and misses.

    Args:
        values: (Q,) one value per query, finite.
        seed: of the resampling.
        num_resamples: R.

    Returns:
        (R,) means.

    Raises:
        DataError: no values, or some are not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise DataError("no values to take an interval of; at least one query is needed")
    if not np.isfinite(sample).all():
        raise DataError(f"{np.count_nonzero(~np.isfinite(sample))} of {sample.size} values are not finite")
    distinct, counts = np.unique(sample, return_counts=True)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_VALUES // len(distinct))
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        drawn = generator.multinomial(sample.size, counts / sample.size, size=size)  # (rows, distinct)
        means[start : start + size] = drawn @ distinct / sample.size
    return means


def percentile_interval(means: NDArray[np.float64], *, level: float) -> tuple[float, float]:
    """The ends between which a share `level` of the (R,) resampled means lies, the rest cut off evenly."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def two_way_interval(
    values: NDArray[np.bool_] | NDArray[np.float64], *, seed: int, num_resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of a table whose rows and columns are both samples (Owen, 2007).

    Where every draw of training images is tested on the same test images, the cells are not independent: the mean
    moves with the draws and with the images. The pigeonhole bootstrap (Annals of Applied Statistics 1(2), 386-411)
    resamples rows and columns independently, each with replacement, and takes every cell where they meet. It counts
    the variance of single cells about three times, which is little beside that of rows and columns, and the variance
    between R rows as (R - 1) / R of itself, as the plain bootstrap does: few rows give too narrow an interval, and of
    one row it is the bootstrap over the columns alone.

    Args:
        values: (R, Q), for instance R draws and Q images; finite.
        seed: of the resampling.
        num_resamples: how many means the percentiles are taken of.
        level: probability between the ends.

    Returns:
        The lower and the upper end.

    Raises:
        DataError: no values, or some are not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    num_rows, num_columns = table.shape
    if table.size == 0:
        raise DataError(f"no values to take an interval of: the shape is {table.shape}")
    if not np.isfinite(table).all():
        raise DataError(f"{np.count_nonzero(~np.isfinite(table))} of {table.size} values are not finite")
    distinct, counts = np.unique(table, axis=1, return_counts=True)  # (R, distinct)
    # Two streams, so that the size of the chunks changes nothing.
    of_columns, of_rows = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    step = max(1, _CHUNK_VALUES // (len(counts) + num_rows))
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        columns = of_columns.multinomial(num_columns, counts / num_columns, size=size)  # (size, distinct)
        rows = of_rows.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=size)  # (size, R)
        means[start : start + size] = (columns @ distinct.T * rows).sum(axis=1) / table.size
    return percentile_interval(means, level=level)
