"""Scored pairs of queries and references → average precision and recall, of each query and over all of them.

Of equal scores of a query the wrong pairs come first, and are kept first where a list is cut, so that ties never help.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from patchssl.evaluate.metrics import percentile_interval
from patchssl.evaluate.results import Metric
from patchssl.evaluate.search.blocks import take_rows
from patchssl.evaluate.search.ranking import average_precision, recall_at, recall_of_ranks, trapezoid_ap

PRECISION = 0.9

_EPS = 1e-12
_CHUNK_VALUES = 4_000_000

# Zero-based ranks of the right pairs in one list of all, and how many right pairs there are → a fraction.
PooledMetric = Callable[[NDArray[np.int64], int], float]


@dataclass(frozen=True, eq=False, slots=True)
class Candidates:
    """P pairs that stand for a copy or not, those of a query together and in the order of its ranking.

    Attributes:
        places: (P,) number of the query, ascending.
        scores: (P,) finite, falling within a query; among equals wrong pairs first.
        correct: (P,) bool.
        num_positives: (Q,) right references of each query in the whole database, found or not.
    """

    places: NDArray[np.int64]
    scores: NDArray[np.float64]
    correct: NDArray[np.bool_]
    num_positives: NDArray[np.int64]

    @property
    def has_positives(self) -> NDArray[np.bool_]:
        """(Q,) whether a query is a copy of anything."""
        return self.num_positives > 0

    def ranks(self) -> list[NDArray[np.int64]]:
        """Zero-based ranks of the right references that were found, for each of the Q queries."""
        ends = np.searchsorted(self.places, np.arange(len(self.num_positives) + 1))
        return [np.flatnonzero(self.correct[start:end]) for start, end in pairwise(ends)]


def make_candidates(
    places: NDArray[np.int64],
    scores: NDArray[np.float64],
    correct: NDArray[np.bool_],
    num_positives: NDArray[np.int64],
    *,
    k: int | None = None,
) -> Candidates:
    """Order pairs, and keep the first k of each query.

    Args:
        places: (P,) number of each pair's query, in any order.
        scores: (P,) higher is surer; pairs of no finite score are left out.
        correct: (P,).
        num_positives: (Q,).
        k: at least 1; None keeps all.
    """
    order = np.lexsort((correct, -scores, places))
    order = order[np.isfinite(scores[order])]
    if k is not None:
        ordered = places[order]
        order = order[np.arange(len(order)) - np.searchsorted(ordered, ordered) < k]
    return Candidates(places[order], scores[order], correct[order], num_positives)


def exact_cosines(
    queries: NDArray[np.float32], database: Sequence[NDArray[np.float32]], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Cosines of neighbours, computed in float64 and rounded to float32.

    A matrix product in float32 gives equal rows similarities that differ in the last bits, by where they lie, so that a
    right one may stand before its equals.

    Args:
        queries: (Q, D).
        database: matrices (m, D) that follow each other.
        rows: (Q, K) of the database.

    Returns:
        (Q, K).
    """
    cosines = np.empty(rows.shape, np.float32)
    step = max(1, _CHUNK_VALUES // (rows.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        ours = _units(queries[part])  # (q, D)
        theirs = _units(take_rows(database, rows[part].ravel())).reshape(*rows[part].shape, -1)  # (q, K, D)
        cosines[part] = np.einsum("qd,qkd->qk", ours, theirs)
    return cosines


def _units(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    values = rows.astype(np.float64)
    units: NDArray[np.float64] = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), _EPS)
    return units


def candidates_of_neighbours(
    similarities: NDArray[np.float32],
    rows: NDArray[np.int64],
    positives: Sequence[NDArray[np.int64]],
    num_positives: NDArray[np.int64],
    *,
    k: int,
    biases: NDArray[np.float64] | None = None,
) -> Candidates:
    """The first k neighbours of each query as scored pairs.

    More than k neighbours should be given, by as many as the most positives of a query: then k wrong ones that are as
    similar as a right one are among them, whichever of equals the search put first, and the right one is cut off.

    Args:
        similarities: (Q, K) of the neighbours found.
        rows: (Q, K) of the database; -1 where the index found none.
        positives: for each query the rows of what it is a copy of, each once.
        num_positives: (Q,) how many there are, those that are in no row included.
        k: how many count, 1 <= k.
        biases: (Q,) taken from all scores of a query.
    """
    num_queries, width = rows.shape
    correct = np.zeros(rows.shape, dtype=bool)
    for query, right in enumerate(positives):
        if len(right):
            correct[query] = np.isin(rows[query], right)
    scores = similarities.astype(np.float64)
    if biases is not None:
        scores -= biases[:, None]
    scores[rows < 0] = -np.inf
    places = np.repeat(np.arange(num_queries), width)
    return make_candidates(places, scores.ravel(), correct.ravel(), num_positives, k=k)


def average_precisions(candidates: Candidates) -> NDArray[np.float64]:
    """(Q,) trapezoidal AP of each query over its candidates; NaN for a query that is no copy."""
    found = zip(candidates.ranks(), candidates.num_positives.tolist(), strict=True)
    return np.array([trapezoid_ap(ranks, num) if num else np.nan for ranks, num in found])


def recalls(candidates: Candidates, k: int) -> NDArray[np.float64]:
    """(Q,) whether a right reference is among the first k of a query; NaN for a query that is no copy."""
    found = zip(candidates.ranks(), candidates.has_positives, strict=True)
    return np.array([recall_at(ranks, k) if is_copy else np.nan for ranks, is_copy in found])


def first_ranks(candidates: Candidates) -> NDArray[np.int64]:
    """(Q,) zero-based rank of the first right reference, -1 where none was found."""
    return np.array([ranks[0] if len(ranks) else -1 for ranks in candidates.ranks()], dtype=np.int64)


def recall_at_precision_90(ranks: NDArray[np.int64], num_positives: int) -> float:
    """The largest recall at which nine in ten pairs are right, 0 if there is none (DISC21, Douze et al., 2021)."""
    return recall_of_ranks(ranks, num_positives, PRECISION)


POOLED: Mapping[str, PooledMetric] = {"rectangle": average_precision, "trapezoid": trapezoid_ap}


def pooled_metrics(
    candidates: Candidates, metrics: Mapping[str, PooledMetric], *, seed: int, num_resamples: int = 2000
) -> dict[str, Metric]:
    """Metrics of the pairs of all queries in one list, with percentile bootstrap intervals over the queries.

    Pairs of a query are not independent, and queries are what was sampled: a resample draws queries with replacement,
    each with all its pairs and its number of positives. The few resamples without any positive are left out.

    Args:
        candidates: of Q queries, at least one of which is a copy.
        metrics: by name.
        seed: of the resampling.
        num_resamples: how many values the percentiles are taken of.
    """
    order = np.lexsort((candidates.correct, -candidates.scores))
    places, right = candidates.places[order], np.flatnonzero(candidates.correct[order])
    num_queries = len(candidates.num_positives)
    total = int(candidates.num_positives.sum())
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(num_resamples):
        counts = generator.multinomial(num_queries, np.full(num_queries, 1 / num_queries))
        num_drawn = int(counts @ candidates.num_positives)
        if num_drawn:
            ranks = _resampled_ranks(counts[places], right)
            for name, metric in metrics.items():
                drawn[name].append(metric(ranks, num_drawn))
    return {name: _metric(metric(right, total), np.array(drawn[name]), num_queries) for name, metric in metrics.items()}


def _resampled_ranks(counts: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks of the right pairs where pair i stands counts[i] times in a row."""
    times = counts[right]
    starts = np.repeat((np.cumsum(counts) - counts)[right], times)
    # 0, 1, … within each run of copies of one pair.
    within = np.arange(int(times.sum())) - np.repeat(np.cumsum(times) - times, times)
    return np.asarray(starts + within, dtype=np.int64)


def _metric(value: float, drawn: NDArray[np.float64], num: int) -> Metric:
    low, high = percentile_interval(drawn, level=0.95) if len(drawn) else (value, value)
    return Metric(value=value, ci95_low=low, ci95_high=high, num=num)
