"""Metrics of rankings: the ranks of what is right in, one value per query out. No model, no device, no files.

Ranks are zero-based, ascending, and count only what a protocol counts. Ties never help: whoever makes ranks puts the
wrong ones first among equals, and the metrics over scores do so themselves.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchssl.errors import DataError


def trapezoid_ap(ranks: ArrayLike, num_positives: int) -> float:
    """Average precision as the area under a precision-recall curve of trapezoids.

    This is the AP of the Holidays evaluation package, of Copydays in DINO, and of revisited Oxford and Paris
    (Radenović et al., CVPR 2018). For the positive number j (from 0) at rank r it takes the mean of j / r, or 1 at the
    first place, and (j + 1) / (r + 1). The rectangular AP, `average_precision`, takes the latter alone.

    Args:
        ranks: of the positives that were found, at most num_positives; the others count as never found.
        num_positives: in the whole database, at least 1.

    Raises:
        DataError: there are no positives, more ranks than positives, or ranks do not ascend from 0.
    """
    found = _checked(ranks, num_positives)
    before = np.arange(len(found), dtype=np.float64)
    left = np.where(found == 0, 1.0, before / np.maximum(found, 1))
    right = (before + 1) / (found + 1)
    return float(((left + right) / 2).sum() / num_positives)


def average_precision(ranks: ArrayLike, num_positives: int, *, cutoff: int | None = None) -> float:
    """Average precision: the mean, over all positives, of the precision at the rank of each.

    Args:
        ranks: of the positives that were found; the others add nothing.
        num_positives: in the whole database, at least 1.
        cutoff: count the first `cutoff` places only and divide by min(num_positives, cutoff), as mAP@100 of Google
            Landmarks v2 (Weyand et al., CVPR 2020); None for all places.

    Raises:
        DataError: as trapezoid_ap.
    """
    found = _checked(ranks, num_positives)
    precisions = (np.arange(len(found)) + 1) / (found + 1)
    if cutoff is None:
        return float(precisions.sum() / num_positives)
    return float(precisions[found < cutoff].sum() / min(num_positives, cutoff))


def recall_at(ranks: ArrayLike, k: int) -> float:
    """1 if any positive is among the first k, else 0: Recall@k as metric learning has it (Jégou et al., 2011)."""
    found = np.asarray(ranks)
    return float(found.size > 0 and bool(found.min() < k))


def r_precision(ranks: ArrayLike, num_positives: int) -> float:
    """The share of positives among the first `num_positives` places.

    Raises:
        DataError: as trapezoid_ap.
    """
    return float(np.count_nonzero(_checked(ranks, num_positives) < num_positives) / num_positives)


def precision_at_revisited(ranks: ArrayLike, k: int) -> float:
    """Precision at k as revisited Oxford and Paris take it: at the place of the last positive, where that is before k.

    Args:
        ranks: of the positives that were found; of none the precision is 0.
        k: at least 1.
    """
    found = np.asarray(ranks, dtype=np.int64)
    if found.size == 0:
        return 0.0
    places = min(int(found.max()) + 1, k)
    return float(np.count_nonzero(found < places) / places)


def micro_ap(scores: ArrayLike, correct: ArrayLike, num_positives: int) -> float:
    """Average precision over the predictions of all queries in one list, as DISC21 (Douze et al., 2021) takes it.

    Args:
        scores: (P,) of predicted pairs, higher is surer; of equal scores the wrong ones come first.
        correct: (P,) whether a pair is right.
        num_positives: right pairs in the ground truth, at least 1; pairs that were not predicted are never found.

    Raises:
        DataError: as trapezoid_ap, or scores are not finite.
    """
    right = _by_score(scores, correct)
    return average_precision(np.flatnonzero(right), num_positives)


def recall_at_precision(scores: ArrayLike, correct: ArrayLike, num_positives: int, precision: float) -> float:
    """The largest recall at which predictions are still right often enough, 0 if they never are.

    Args:
        scores: (P,) of predicted pairs, higher is surer; of equal scores the wrong ones come first.
        correct: (P,) whether a pair is right.
        num_positives: right pairs in the ground truth, at least 1.
        precision: to be reached, in (0, 1].

    Raises:
        DataError: as micro_ap.
    """
    return recall_of_ranks(np.flatnonzero(_by_score(scores, correct)), num_positives, precision)


def recall_of_ranks(ranks: ArrayLike, num_positives: int, precision: float) -> float:
    """The largest recall at which a ranking is still right often enough, 0 if it never is.

    Args:
        ranks: of the positives that were found.
        num_positives: in the whole ground truth, at least 1.
        precision: to be reached, in (0, 1].

    Raises:
        DataError: as trapezoid_ap.
    """
    found = _checked(ranks, num_positives)
    reached = np.flatnonzero((np.arange(len(found)) + 1) / (found + 1) >= precision)
    return float((reached[-1] + 1) / num_positives) if len(reached) else 0.0


def ranks_in_list(
    similarities: NDArray[np.float32], rows: NDArray[np.int64], right: NDArray[np.int64], ignored: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Ranks of what is right in a list of neighbours.

    Args:
        similarities: (k,) of one query's neighbours, in any order; of equal ones the wrong come first.
        rows: (k,) of the neighbours, -1 where the list ends early.
        right: rows that count.
        ignored: rows that are taken out.

    Returns:
        Zero-based ranks of the right rows of the list, ascending.
    """
    kept = (rows >= 0) & ~np.isin(rows, ignored)
    hits = np.isin(rows[kept], right)
    return np.flatnonzero(hits[np.lexsort((hits, -similarities[kept]))])


def _by_score(scores: ArrayLike, correct: ArrayLike) -> NDArray[np.bool_]:
    values, right = np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=bool)
    if values.shape != right.shape or values.ndim != 1:
        raise DataError(f"scores have the shape {values.shape}, correctness {right.shape}; both must be (P,)")
    if np.isnan(values).any():
        raise DataError(f"{np.count_nonzero(np.isnan(values))} of {len(values)} scores are not numbers")
    return right[np.lexsort((right, -values))]


def _checked(ranks: ArrayLike, num_positives: int) -> NDArray[np.int64]:
    found = np.asarray(ranks, dtype=np.int64)
    if num_positives < 1:
        raise DataError("a query without positives has no average precision; leave it out of the mean")
    if len(found) > num_positives:
        raise DataError(f"{len(found)} positives were found of {num_positives}; each counts once")
    if len(found) and (found[0] < 0 or (np.diff(found) <= 0).any()):
        raise DataError("ranks must ascend from 0, each once")
    return found


def ranks_of(hits: NDArray[np.bool_]) -> Sequence[NDArray[np.int64]]:
    """(Q, k) hits in the order of the ranking → the ranks of the positives of each query."""
    return [np.flatnonzero(row) for row in hits]
