"""All pairs of features that are more similar than a threshold, in memory that does not grow with their number."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchssl.errors import ConfigError
from patchssl.evaluate.search.index import finite_units

MOST_PAIRS = 1_000_000
_BLOCK_ROWS = 2048


@dataclass(frozen=True, eq=False, slots=True)
class SimilarPairs:
    """Pairs of rows, the most similar first, then by their places.

    Attributes:
        one: (P,) int64.
        other: (P,) int64, each above its one.
        cosines: (P,) float32, at most 1.
        num_found: pairs at or above the threshold; more than P where they were too many to be kept.
        above: where they were too many, the cosine above which all were kept; else None.
    """

    one: NDArray[np.int64]
    other: NDArray[np.int64]
    cosines: NDArray[np.float32]
    num_found: int
    above: float | None

    def __len__(self) -> int:
        return len(self.one)


def similar_pairs(
    features: NDArray[np.float32],
    threshold: float,
    *,
    device: torch.device | str = "cpu",
    most_pairs: int = MOST_PAIRS,
    block_rows: int = _BLOCK_ROWS,
    on_rows: Callable[[int], None] | None = None,
) -> SimilarPairs:
    """Find every pair of rows whose cosine similarity reaches a threshold.

    Blocks of rows are compared with blocks, so that beside the features one block of similarities and at most
    2 most_pairs + block_rows² pairs are held. Of more than most_pairs pairs the most similar are kept: all above the
    cosine of the first that is not.

    Args:
        features: (M, D), also mapped from disk; normalised here. A row of zeros is similar to none.
        threshold: above 0, at most 1.
        device: where to multiply.
        most_pairs: how many are kept at most.
        block_rows: rows of a block; the result depends on it by rounding only.
        on_rows: called with the number of rows compared with all after them since the last call.

    Raises:
        ConfigError: the threshold is out of range.
        DataError: features hold NaN or infinite values.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the threshold is {threshold}; cosines that mean likeness lie above 0 and at most at 1")
    kept = _Kept(threshold, most_pairs)
    for start in range(0, len(features), block_rows):
        rows = _units(features, start, block_rows, device)
        for column in range(start, len(features), block_rows):
            columns = rows if column == start else _units(features, column, block_rows, device)
            cosines = (rows @ columns.T).clamp_(max=1.0)  # (m, D) x (D, n)
            kept.add(cosines.triu_(1) if column == start else cosines, start, column)
        if on_rows is not None:
            on_rows(len(rows))
    return kept.pairs()


def _units(features: NDArray[np.float32], start: int, num: int, device: torch.device | str) -> Tensor:
    return torch.from_numpy(finite_units(features[start : start + num], "image", start)).to(device)


class _Kept:
    """The most similar pairs so far."""

    def __init__(self, threshold: float, most: int) -> None:
        self.threshold, self.most = threshold, most
        self.num_found = 0
        self.above: float | None = None
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []

    def add(self, cosines: Tensor, first_row: int, first_column: int) -> None:
        """Take the pairs of a block (m, n) of similarities."""
        is_similar = cosines >= self.threshold
        num = int(is_similar.sum())
        self.num_found += num
        if not num:
            return
        if self.above is not None:
            is_similar = cosines > self.above
        rows, columns = is_similar.nonzero(as_tuple=True)
        found = cosines[rows, columns]
        self._parts.append((rows.cpu().numpy() + first_row, columns.cpu().numpy() + first_column, found.cpu().numpy()))
        if sum(len(part[0]) for part in self._parts) > 2 * self.most:
            self._prune()

    def _prune(self) -> None:
        one, other, cosines = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        if len(cosines) > self.most:
            self.above = float(np.partition(cosines, -self.most - 1)[-self.most - 1])
            keep = cosines > self.above
            one, other, cosines = one[keep], other[keep], cosines[keep]
        self._parts = [(one, other, cosines)]

    def pairs(self) -> SimilarPairs:
        """Everything that was kept, in order."""
        if not self._parts:
            return SimilarPairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), 0, None)
        self._prune()
        one, other, cosines = self._parts[0]
        order = np.lexsort((other, one, -cosines))
        return SimilarPairs(one[order], other[order], cosines[order], self.num_found, self.above)
