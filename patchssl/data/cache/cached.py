"""Images of a cache as a source: arrays that are parts of memory-mapped files."""

import hashlib
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchssl.data.cache.folder import told_bytes
from patchssl.data.cache.shard import Shards, Table
from patchssl.data.cache.shrinking import ShrunkImages, WrappedStored
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import StoredSource
from patchssl.errors import DataError

# Each keeps a file open, of which a process may have 1,024 on many systems.
_MOST_MAPPED = 256


class Maps:
    """The files of pixels, mapped when they are first asked for, in each process by itself."""

    def __init__(self, shards: Shards, num_bytes: Sequence[int]) -> None:
        """Keep where they are.

        Args:
            shards: whose files.
            num_bytes: of each.
        """
        self._shards, self._num_bytes = shards, tuple(num_bytes)
        self._mapped: Callable[[int], mmap.mmap] = lru_cache(_MOST_MAPPED)(self._map)

    def __getstate__(self) -> dict[str, Any]:
        """Only where they are; what is mapped stays with its process."""
        return {"shards": self._shards, "num_bytes": self._num_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def of(self, number: int) -> mmap.mmap:
        """The file of a shard.

        Raises:
            DataError: it is no longer there or no longer what it was.
        """
        return self._mapped(number)

    def _map(self, number: int) -> mmap.mmap:
        path = self._shards.data(number)
        try:
            with path.open("rb") as file:
                found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            reason = getattr(error, "strerror", None) or str(error)
        else:
            if len(found) == self._num_bytes[number]:
                return found
            reason = f"it has {len(found):,} bytes where there were {self._num_bytes[number]:,}"
        raise DataError(f"{path} of the cache of images cannot be read any more: {reason}; start again with --resume")


@dataclass(frozen=True, eq=False)
class CachedImages(WrappedStored):
    """The images of a source, decoded and shrunk.

    Attributes:
        source: of the originals, which are not read any more.
        side: the shorter side is at most this long, px.
        shards: where they are.
        maps: of their files.
        sizes: (M, 2) int32 height and width, px; zeros where an image cannot be read.
        offsets: (M,) int64, where each begins in its file.
        reasons: by index, of those that cannot be read.
        kept_state: of the originals and how they are shrunk, when they were looked at.
    """

    source: StoredSource
    side: int
    shards: Shards
    maps: Maps
    sizes: NDArray[np.int32]
    offsets: NDArray[np.int64]
    reasons: Mapping[int, str]
    kept_state: str

    def fetch(self, index: int) -> NDArray[np.uint8]:
        """Pixels (h, w, 3), a read-only part of the file; raises UnreadableImage."""
        index = range(len(self.sizes))[index]
        if index in self.reasons:
            raise UnreadableImage(self.where(index), self.reasons[index])
        height, width = self.sizes[index].tolist()
        mapped = self.maps.of(index // self.shards.shard_images)
        flat = np.frombuffer(mapped, np.uint8, 3 * height * width, int(self.offsets[index]))
        return flat.reshape(height, width, 3)

    def told(self) -> str:
        """Where the images are, and how many bytes they take."""
        lacking = f"; {len(self.reasons):,} cannot be read" if self.reasons else ""
        size = told_bytes(3 * int(self.sizes.astype(np.int64).prod(axis=1).sum()))
        return f"{self.shards.folder} (shorter side at most {self.side} px, {size}{lacking})"

    def read(self, index: int) -> Image.Image:
        """The same as RGB."""
        return Image.fromarray(self.fetch(index))

    def state(self) -> str:
        """That of the originals when the cache was opened, and of how they are shrunk: what is kept does not change."""
        return hashlib.sha256(f"cached {self.kept_state}".encode()).hexdigest()


def of_tables(shrunk: ShrunkImages, shards: Shards, tables: Sequence[Table], state: str) -> CachedImages:
    """The images of a cache that is whole.

    Args:
        shrunk: what is kept.
        shards: where they are.
        tables: of all shards.
        state: of what is kept.
    """
    reasons = {
        images.start + place: entry.reason
        for images, table in zip(map(shards.images, range(len(shards))), tables, strict=True)
        for place, entry in table.lacking.items()
    }
    lengths = [table.lengths for table in tables]
    return CachedImages(
        shrunk.source,
        shrunk.side,
        shards,
        Maps(shards, [table.num_bytes for table in tables]),
        np.concatenate([table.sizes for table in tables]),
        np.concatenate([length.cumsum() - length for length in lengths]),
        reasons,
        state,
    )
