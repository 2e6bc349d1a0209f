"""Matrices that are too large to hold twice, gone through in blocks of rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import DataError

Matrices = NDArray[np.float32] | Sequence[NDArray[np.float32]]
"""A matrix (M, D), also one mapped from disk, or several (m, D) that follow each other."""

_CHECK_BYTES = 64 * 2**20


def as_parts(matrices: Matrices, name: str = "database") -> tuple[NDArray[np.float32], ...]:
    """The matrices without those that have no rows.

    Raises:
        DataError: one has no two dimensions, the widths differ, or there is no row at all.
    """
    given = (matrices,) if isinstance(matrices, np.ndarray) else tuple(matrices)
    shapes = [part.shape for part in given]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) > 1:
        raise DataError(f"the {name} has the shapes {shapes}; needed: (rows, D) with one width D")
    parts = tuple(part for part in given if part.size)
    if not parts:
        raise DataError(f"the {name} is empty: shapes {shapes}")
    return parts


def row_blocks(parts: Sequence[NDArray[Any]], num_rows: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Go through matrices in blocks of at most num_rows rows, each a view with the number of its first row."""
    before = 0
    for part in parts:
        for start in range(0, len(part), num_rows):
            yield before + start, part[start : start + num_rows]
        before += len(part)


def take_rows(parts: Sequence[NDArray[np.float32]], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Copy rows (n, D) out of matrices, by their numbers (n,) over all of them."""
    ends = np.cumsum([len(part) for part in parts])
    places = np.searchsorted(ends, rows, side="right")
    taken = np.empty((len(rows), parts[0].shape[1]), np.float32)
    for place in np.unique(places):
        chosen = places == place
        taken[chosen] = parts[place][rows[chosen] - (ends[place] - len(parts[place]))]
    return taken


def refuse_non_finite(norms: NDArray[np.floating[Any]], name: str, rows: Sequence[int] | NDArray[np.int64]) -> None:
    """Refuse features whose norms (m,) show values that are NaN, infinite or too large to be squared.

    Args:
        norms: of some features.
        name: of the matrix, for instance `database`.
        rows: (m,) their places in it.

    Raises:
        DataError: there are such.
    """
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(norms)} {name} features hold NaN or infinite values, the first of them row "
            f"{rows[bad[0]]}; the weights may be broken, or fp16 too narrow: try fp32"
        )


def non_finite_rows(matrix: NDArray[np.float32]) -> NDArray[np.int64]:
    """The numbers of the rows (M, D) that hold NaN or infinite values."""
    num_rows = max(1, _CHECK_BYTES // max(1, 4 * matrix.shape[1]))
    bad = [start + np.flatnonzero(~np.isfinite(block).all(axis=1)) for start, block in row_blocks((matrix,), num_rows)]
    return np.concatenate([np.empty(0, np.int64), *bad]).astype(np.int64)
