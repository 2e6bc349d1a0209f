"""Exact ranks in the ranking of a whole database that is never held, nor its similarities.

Average precision over a full ranking needs the rank of every positive, not a list of k neighbours. The rank of a row is
the number of rows before it, so that counting rows block by block is enough.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import DataError
from patchssl.evaluate.search.blocks import Matrices, as_parts, refuse_non_finite, row_blocks, take_rows

BLOCK_VALUES = 4_000_000
"""Float64 values of a block of the database, and of its similarities to a chunk of queries: 32 MB each."""

_EPS = 1e-12
_NONE = np.empty(0, np.int64)


def full_ranks(
    queries: NDArray[np.float32],
    database: Matrices,
    listed: Sequence[NDArray[np.int64]],
    ignored: Sequence[NDArray[np.int64]] | None = None,
    *,
    own: NDArray[np.int64] | None = None,
    block_values: int = BLOCK_VALUES,
) -> list[NDArray[np.int64]]:
    """Rank the listed rows of each query among all rows by cosine similarity.

    Ties never help: rows that are as similar as a listed one and are not listed themselves come before it. Similarities
    are computed in float64 and compared as float32, so that equal rows are equally similar wherever they lie; a
    difference in the last bits of float64 is what a matrix product leaves between them.

    Memory for the similarities of `block_values` pairs is needed, whatever Q and M.

    Args:
        queries: (Q, D).
        database: M rows of width D, as a matrix or several that follow each other, for instance a gallery and
            distractors; also mapped from disk.
        listed: for each query the rows whose ranks are wanted, for instance its positives; may be empty.
        ignored: for each query the rows that do not count, as if they were not there; None for none.
        own: (Q,) the row that is the query itself and does not count either, -1 where there is none.
        block_values: the results do not depend on it.

    Returns:
        For each query the zero-based ranks of its listed rows, ascending, as `patchssl.evaluate.search.ranking` takes
        them.

    Raises:
        DataError: the widths differ, there are NaN or infinite values, the database is empty, a row is none of it, or
            is listed twice or listed and ignored.
    """
    parts = as_parts(database)
    num_rows = sum(map(len, parts))
    if queries.ndim != 2 or queries.shape[1] != parts[0].shape[1]:
        raise DataError(
            f"queries have the shape {queries.shape}, the database is {parts[0].shape[1]} wide; both must come from "
            "one model"
        )
    listed = [_as_rows(rows) for rows in listed]
    ignored = [_NONE] * len(queries) if ignored is None else [_as_rows(rows) for rows in ignored]
    own = np.full(len(queries), -1, np.int64) if own is None else own
    _check_rows(len(queries), num_rows, listed, ignored, own)
    asked = [query for query, rows in enumerate(listed) if len(rows)]
    thresholds = {query: _similarities_of(queries, query, parts, listed[query]) for query in asked}
    counts = {query: np.zeros(len(listed[query]), np.int64) for query in asked}
    for start, block in row_blocks(parts, max(1, block_values // parts[0].shape[1])):
        rows = _units(block, "database", range(start, start + len(block)))
        step = max(1, block_values // len(rows))
        for first in range(0, len(asked), step):
            chunk = asked[first : first + step]
            similarities = _similarities(_units(queries[chunk], "query", chunk), rows)
            for query, found in zip(chunk, similarities, strict=True):
                for left_out in (listed[query], ignored[query], own[query : query + 1]):
                    inside = left_out[(left_out >= start) & (left_out < start + len(rows))]
                    found[inside - start] = -np.inf
                counts[query] += _num_reaching(found, thresholds[query])
    # Counted are the rows that are not listed; before each listed one stand the more similar listed ones, too.
    return [
        counts[query][::-1] + np.arange(len(listed[query])) if query in counts else _NONE.copy()
        for query in range(len(queries))
    ]


def _as_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    given = np.asarray(rows)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise DataError(
            f"rows are of type {given.dtype} and shape {given.shape}; needed: whole numbers in one dimension"
        )
    return given.astype(np.int64, copy=False)  # an empty list is of floats


def _check_rows(
    num_queries: int,
    num_rows: int,
    listed: Sequence[NDArray[np.int64]],
    ignored: Sequence[NDArray[np.int64]],
    own: NDArray[np.int64],
) -> None:
    for name, given in (("listed", listed), ("ignored", ignored), ("own", own)):
        if len(given) != num_queries:
            raise DataError(f"{name} rows are given for {len(given)} queries; there are {num_queries}")
    if own.size and not -1 <= own.min() <= own.max() < num_rows:
        raise DataError(f"own rows are {own.min()} to {own.max()}; allowed: 0 to {num_rows - 1}, or -1 for none")
    for query, (wanted, left_out) in enumerate(zip(listed, ignored, strict=True)):
        for name, rows in (("listed", wanted), ("ignored", left_out)):
            if len(rows) and not 0 <= rows.min() <= rows.max() < num_rows:
                raise DataError(
                    f"query {query} has {name} rows from {rows.min()} to {rows.max()}; allowed: 0 to {num_rows - 1}"
                )
        if len(np.unique(wanted)) < len(wanted):
            raise DataError(f"query {query} lists {len(wanted) - len(np.unique(wanted))} rows more than once")
        both = np.count_nonzero(np.isin(wanted, left_out) | (wanted == own[query]))
        if both:
            raise DataError(f"query {query} lists {both} rows that are to be ignored, or are the query itself")


def _units(features: NDArray[np.float32], name: str, places: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Rows (m, D) divided by their L2 norms, which float64 makes equal for equal rows."""
    rows = features.astype(np.float64)
    norms = np.sqrt(np.einsum("md,md->m", rows, rows))
    refuse_non_finite(norms, name, places)
    rows /= np.maximum(norms, _EPS)[:, None]
    return rows


def _similarities(queries: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float32]:
    similarities: NDArray[np.float32] = (queries @ rows.T).astype(np.float32)  # (q, D) x (D, m) -> (q, m)
    return similarities


def _similarities_of(
    queries: NDArray[np.float32], query: int, parts: Sequence[NDArray[np.float32]], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The similarities (L,) of some rows to a query, ascending."""
    unit = _units(queries[query][None], "query", [query])
    return np.sort(_similarities(unit, _units(take_rows(parts, rows), "database", rows))[0])


def _num_reaching(similarities: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many similarities (m,) are at least as high as each of the ascending thresholds (L,)."""
    # Most rows of a good ranking are below all of them.
    high = similarities[similarities >= thresholds[0]]
    reached = np.searchsorted(thresholds, high, side="right")
    at_least = np.bincount(reached, minlength=len(thresholds) + 1)[::-1].cumsum()[::-1]
    return at_least[1:].astype(np.int64)
