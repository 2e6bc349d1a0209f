"""Names of the images in shards, without an object for each."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np


class RowNames(Sequence[str]):
    """The numbers of the rows of a table."""

    def __init__(self, num_rows: int) -> None:
        """Count from 0."""
        self._rows = range(num_rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return [str(row) for row in self._rows[index]] if isinstance(index, slice) else str(self._rows[index])


class NamesInShards(Sequence[str]):
    """SHARD/NAME for all images of several shards."""

    def __init__(self, shards: Sequence[str], names: Sequence[Sequence[str]]) -> None:
        """Keep both.

        Args:
            shards: the name of each.
            names: of the images in each.
        """
        self._shards, self._names = shards, names
        self._starts = np.cumsum([0, *map(len, names)]).tolist()

    def place(self, index: int) -> tuple[int, int]:
        """The shard of an image, and its number there."""
        shard = bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        shard, number = self.place(range(len(self))[index])
        return f"{self._shards[shard]}/{self._names[shard][number]}"

    def __iter__(self) -> Iterator[str]:
        for shard, names in zip(self._shards, self._names, strict=True):
            for name in names:
                yield f"{shard}/{name}"
