"""Images in parquet files."""

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.data.decode import UnreadableImage
from patchssl.data.lanes import MAX_LANES, Blocks
from patchssl.data.shards.copying import local_copy
from patchssl.data.shards.names import NamesInShards, RowNames
from patchssl.data.shards.parquet_index import ParquetIndex, first_line, parquet_module
from patchssl.data.shards.shard import Shard, open_unchanged
from patchssl.data.shards.source import ShardSource

logger = logging.getLogger(__name__)

_KEPT_BYTES = 1 << 30
# A lane stands in one row group, and its buffer reaches into the next.
_GROUPS_OF_LANE = 2


@dataclass(frozen=True)
class _Group:
    """A decoded row group.

    Attributes:
        contents: bytes of each row, as pyarrow holds them; None where it is damaged.
        paths: of each row, where the files hold them.
        damage: why it cannot be read.
    """

    contents: Any
    paths: Any = None
    damage: str = ""

    @property
    def num_bytes(self) -> int:
        return sum(int(part.nbytes) for part in (self.contents, self.paths) if part is not None)


class ParquetSource(ShardSource):
    """The images of parquet files, a row each; the row groups in use are kept decoded."""

    def __init__(
        self, shards: Sequence[Shard], indexes: Sequence[ParquetIndex], *, name: str, location: str, apply_exif: bool
    ) -> None:
        """Keep where the rows lie.

        Args:
            shards: the files.
            indexes: of each.
            name: a short name of the data.
            location: the path as it was given.
            apply_exif: turn pictures upright.
        """
        ids = NamesInShards([shard.name for shard in shards], [RowNames(len(index)) for index in indexes])
        super().__init__(shards, ids, name=name, location=location, apply_exif=apply_exif)
        self._columns = tuple(index.column for index in indexes)
        rows = np.concatenate([index.rows for index in indexes])
        sizes = np.concatenate([index.num_bytes for index in indexes])
        self._starts = np.cumsum(rows) - rows
        self._shard_of = np.repeat(np.arange(len(shards)), [len(index.rows) for index in indexes])
        self._first_group = np.searchsorted(self._shard_of, np.arange(len(shards)))
        self._kept_bytes, lanes, buffer = bounds(rows, sizes)
        if self._kept_bytes > _KEPT_BYTES:
            logger.warning(
                "%s has row groups of up to %.0f MiB; each loader process may keep %.1f GiB of them",
                location,
                sizes.max() / 2**20,
                self._kept_bytes / 2**30,
            )
        self.blocks = Blocks(rows, self._shard_of, lanes, buffer)
        self._begin()

    def where(self, index: int) -> str:
        """The file's path and the row's number."""
        shard, row = self.ids.place(index)
        return f"{self._shards[shard].location}: row {row}"

    def fetch(self, index: int) -> bytes:
        """The content of an image file in a row.

        Raises:
            UnreadableImage: the row holds none, or its row group is damaged.
            DataError: its file is gone or has changed.
        """
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        group, row = self._group(number), index - int(self._starts[number])
        if group.damage:
            raise UnreadableImage(self.where(index), group.damage)
        content = group.contents[row].as_py()
        if content is None:
            path = None if group.paths is None else group.paths[row].as_py()
            told = "holds no image" if not path else f"holds no bytes, only the path {path}; store images in the file"
            raise UnreadableImage(self.where(index), told)
        return bytes(content)

    def fingerprint(self) -> str:
        """Hash of names and sizes of the files, their columns and row groups; contents are not read."""
        digest = hashlib.sha256()
        for shard, column in zip(self._shards, self._columns, strict=True):
            digest.update(f"{shard.name}\0{shard.size}\0{column}\0".encode(errors="surrogateescape"))
        digest.update(self.blocks.sizes.astype("<i8").tobytes())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_groups", "_lock", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._groups: OrderedDict[int, _Group] = OrderedDict()
        self._lock = threading.Lock()

    def _group(self, number: int) -> _Group:
        """A row group, decoded now or before; those used longest ago are dropped where they are too many."""
        if self._process != os.getpid():
            self._begin()  # a thread of the parent may have held the lock when this process was forked
        with self._lock:
            if number in self._groups:
                self._groups.move_to_end(number)
                return self._groups[number]
            found = self._groups[number] = self._decoded(number)
            total = sum(group.num_bytes for group in self._groups.values())
            while total > self._kept_bytes and len(self._groups) > 1:
                total -= self._groups.popitem(last=False)[1].num_bytes
        return found

    def _decoded(self, number: int) -> _Group:
        which = int(self._shard_of[number])
        shard, column = self._shards[which], self._columns[which]
        with os.fdopen(open_unchanged(shard, local_copy(shard)), "rb") as file:
            try:
                return _read(file, number - int(self._first_group[which]), column, int(self.blocks.sizes[number]))
            except MemoryError:
                raise
            # What pyarrow raises on damaged files is as varied as what these might hold.
            except Exception as error:
                return _Group(None, damage=f"its row group cannot be read: {first_line(error)}")


def bounds(rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> tuple[int, int, int]:
    """How much is kept, and what may be in use at a time so that nothing is decoded again and again.

    Half of what is kept is for the row groups in which lanes stand, half for what the shuffle buffer spans.

    Args:
        rows: (G,) of each row group.
        sizes: (G,) uncompressed bytes of each.

    Returns:
        Bytes of row groups that a process keeps, lanes, images of the shuffle buffer.
    """
    largest = max(1, int(sizes.max(initial=1)))
    kept = max(_KEPT_BYTES, 2 * (_GROUPS_OF_LANE + 1) * largest)
    lanes = min(MAX_LANES, max(1, kept // 2 // (_GROUPS_OF_LANE * largest)))
    bytes_of_image = max(1.0, float((sizes / np.maximum(rows, 1)).max(initial=1.0)))
    return kept, lanes, max(1, int(kept / 2 / bytes_of_image))


def _read(file: Any, group: int, column: str, num_rows: int) -> _Group:
    """Decode a row group, in one thread: others do not survive a fork."""
    import pyarrow.compute as compute
    import pyarrow.types as types

    with parquet_module().ParquetFile(file, pre_buffer=False) as opened:
        values = opened.read_row_group(group, columns=[column], use_threads=False).column(column)
    if len(values) != num_rows:
        raise ValueError(f"it has {len(values):,} rows, and should have {num_rows:,}")
    if not types.is_struct(values.type):
        return _Group(values)
    names = [field.name for field in values.type]
    paths = compute.struct_field(values, "path") if "path" in names else None
    return _Group(compute.struct_field(values, "bytes"), paths)
