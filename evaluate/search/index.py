"""Exact nearest neighbours by cosine similarity, with FAISS."""

import logging

import faiss
import numpy as np
from numpy.typing import NDArray

from patchssl.evaluate.search.blocks import Matrices, as_parts, refuse_non_finite, row_blocks

logger = logging.getLogger(__name__)

BLOCK_BYTES = 256 * 2**20
"""A block of a database that is searched at once; FAISS holds it normalised, and it is held twice while it is added."""

_EPS = 1e-12
_CHUNK_VALUES = 4_000_000
_MIN_TIE_SEARCH = 4096


def normalise_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide each row by its L2 norm, or by 1e-12 where that is larger, as torch's `F.normalize` does.

    Args:
        features: (M, D).

    Returns:
        (M, D) float32, C-contiguous; a row of zeros stays zero.
    """
    rows = np.array(features, dtype=np.float32, order="C")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.maximum(norms, _EPS)
    return rows


def finite_units(features: NDArray[np.float32], name: str, start: int = 0) -> NDArray[np.float32]:
    """Normalise rows as `normalise_rows` does, but refuse those that give no number.

    Args:
        features: (m, D).
        name: of the matrix that they are of, for instance `database`.
        start: the place of the first of them in it.

    Raises:
        DataError: a row holds NaN or infinite values.
    """
    refuse_non_finite(np.linalg.norm(features, axis=1), name, range(start, start + len(features)))
    return normalise_rows(features)


class CosineIndex:
    """Exact search (`IndexFlatIP`) in L2-normalised rows."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        """Normalise and store (M, D) features."""
        rows = normalise_rows(features)
        self._index = faiss.IndexFlatIP(rows.shape[1])
        self._index.add(rows)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k most similar rows of each query.

        Of equal similarities the lower row comes first and is kept. Only where more than 16 k (at least 4,096) rows
        are equally similar at the end of the list, as for a collapsed network, does FAISS choose which are kept.

        Args:
            queries: (Q, D), normalised here.
            k: 1 <= k <= M.

        Returns:
            similarities (Q, k) descending, and rows (Q, k).
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k is {k}; allowed: 1 to {len(self)}, the number of rows")
        similarities = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        step = max(1, _CHUNK_VALUES // (k + 1))
        for start in range(0, len(queries), step):
            part = normalise_rows(queries[start : start + step])
            similarities[start : start + step], rows[start : start + step] = self._search_part(part, k)
        return similarities, rows

    def _search_part(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        # One neighbour more than asked for shows whether the list ends among equals.
        found, rows = _ordered(*self._index.search(queries, min(k + 1, len(self))))
        if k == len(self):
            return found, rows
        tied = np.flatnonzero(found[:, k - 1] == found[:, k])
        found, rows = found[:, :k], rows[:, :k]
        limit = min(len(self), max(16 * k, _MIN_TIE_SEARCH))
        width = 2 * k
        while len(tied):
            width = min(width, limit)
            unresolved = []
            step = max(1, _CHUNK_VALUES // width)
            for start in range(0, len(tied), step):
                chosen = tied[start : start + step]
                wide, wide_rows = _ordered(*self._index.search(queries[chosen], width))
                found[chosen], rows[chosen] = wide[:, :k], wide_rows[:, :k]
                unresolved.append(chosen[wide[:, -1] == wide[:, k - 1]])
            tied = np.concatenate(unresolved)
            if width == limit:
                break
            width *= 2
        if len(tied) and limit < len(self):
            logger.warning(
                "%d queries have over %d equally similar neighbours: the features may have collapsed", len(tied), limit
            )
        return found, rows


def exact_search(
    queries: NDArray[np.float32], database: Matrices, k: int, *, block_bytes: int = BLOCK_BYTES
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the k most similar rows of each query as `CosineIndex` does, in a database of which one block is held.

    Args:
        queries: (Q, D), normalised here.
        database: M rows of width D, as a matrix or several that follow each other, also mapped from disk.
        k: 1 <= k <= M.
        block_bytes: size of a block; the results do not depend on it.

    Returns:
        similarities (Q, k) descending, and rows (Q, k), of equal similarities the lower row first.

    Raises:
        DataError: the database is empty, or features hold NaN or infinite values.
    """
    parts = as_parts(database)
    if not 1 <= k <= sum(map(len, parts)):
        raise ValueError(f"k is {k}; allowed: 1 to {sum(map(len, parts))}, the number of rows")
    step = max(1, block_bytes // (4 * parts[0].shape[1]))
    for start, block in row_blocks((queries,), step):
        refuse_non_finite(np.linalg.norm(block, axis=1), "query", range(start, start + len(block)))
    best = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start, block in row_blocks(parts, step):
        refuse_non_finite(np.linalg.norm(block, axis=1), "database", range(start, start + len(block)))
        found, rows = CosineIndex(block).search(queries, min(k, len(block)))
        best = _merged(best, (found, rows + start), k)
    return best


def _merged(
    first: tuple[NDArray[np.float32], NDArray[np.int64]], second: tuple[NDArray[np.float32], NDArray[np.int64]], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best k of two lists for each query, of which the second holds higher rows."""
    if not first[0].shape[1]:
        return second
    found, rows = _ordered(np.concatenate([first[0], second[0]], axis=1), np.concatenate([first[1], second[1]], axis=1))
    return found[:, :k], rows[:, :k]


def _ordered(
    similarities: NDArray[np.float32], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Sort by falling similarity, then by rising row."""
    order = np.lexsort((rows, -similarities), axis=1)
    return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(rows, order, axis=1)
