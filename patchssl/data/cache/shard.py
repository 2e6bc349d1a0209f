"""Shards of a cache: the pixels of consecutive images in one file, what they are in another.

    shard-00012.bin           pixels (h, w, 3) uint8, one image after another
    shard-00012.bin.sha256    for `sha256sum -c`
    shard-00012.json          their sizes, and why images are lacking

The table is written last, so that a shard whose table is there is whole.
"""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.atomic import replacing
from patchssl.checksums import checksum_path
from patchssl.data.cache.locks import Held, trying_lock

_PART = re.compile(r"\.shard-(\d+)\..*\.part")
_LEFT_OVER_S = 24 * 3600


@dataclass(frozen=True)
class Lacking:
    """Why an image is lacking in a shard.

    Attributes:
        reason: in words.
        was_fetched: its content was there and cannot be decoded, now or later; else it may be there another time.
    """

    reason: str
    was_fetched: bool


@dataclass(frozen=True, eq=False)
class Table:
    """What a shard holds.

    Attributes:
        sizes: (m, 2) int32 height and width of each image, px; zeros where one is lacking.
        lacking: by place in the shard.
    """

    sizes: NDArray[np.int32]
    lacking: Mapping[int, Lacking]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(m,) bytes of each image."""
        lengths: NDArray[np.int64] = 3 * self.sizes.astype(np.int64).prod(axis=1)
        return lengths

    @property
    def num_bytes(self) -> int:
        """Of the file of pixels."""
        return int(self.lengths.sum())


@dataclass(frozen=True)
class Shards:
    """The files of M images.

    Attributes:
        folder: in which they lie.
        num_images: M.
        shard_images: in each of them but the last.
    """

    folder: Path
    num_images: int
    shard_images: int

    def __len__(self) -> int:
        return -(-self.num_images // self.shard_images)

    def images(self, number: int) -> range:
        """The places of a shard's images in the source."""
        return range(number * self.shard_images, min((number + 1) * self.shard_images, self.num_images))

    def num_of(self, numbers: Sequence[int]) -> int:
        """How many images some shards hold."""
        return sum(len(self.images(number)) for number in numbers)

    def data(self, number: int) -> Path:
        """The file of pixels."""
        return self.folder / f"shard-{number:05d}.bin"

    def table(self, number: int) -> Path:
        """The file of sizes."""
        return self.folder / f"shard-{number:05d}.json"

    def lock(self, number: int) -> Path:
        """What is locked by the process that writes the shard."""
        return self.folder / f"shard-{number:05d}.lock"

    def has(self, number: int) -> bool:
        """Whether a shard has been written."""
        return self.table(number).exists()

    def missing_of(self, numbers: Sequence[int]) -> list[int]:
        """Those that have not been written, by one look at the folder."""
        found = set(os.listdir(self.folder))  # noqa: PTH208 - names are enough, of which there are many
        return [number for number in numbers if self.table(number).name not in found]

    def write_table(self, number: int, table: Table) -> None:
        """Say what a shard holds, which makes it whole; raises OSError."""
        lacking = [[place, entry.reason, entry.was_fetched] for place, entry in sorted(table.lacking.items())]
        content = {
            "first": self.images(number).start,
            "num_bytes": table.num_bytes,
            "sizes": table.sizes.tolist(),
            "lacking": lacking,
        }
        with replacing(self.table(number)) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")

    def read_table(self, number: int) -> Table:
        """What a shard holds; its file of pixels has the size that follows from it.

        Raises:
            FileNotFoundError: it has not been written.
            OSError: it cannot be read.
            ValueError: it is damaged, in words.
        """
        try:
            table = _table(json.loads(self.table(number).read_bytes()), self.images(number))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{self.table(number)} is damaged ({str(error) or type(error).__name__})") from None
        try:
            found = self.data(number).stat().st_size
        except FileNotFoundError:
            raise ValueError(f"{self.data(number)} is gone") from None
        if found != table.num_bytes:
            raise ValueError(f"{self.data(number)} has {found:,} bytes where there should be {table.num_bytes:,}")
        return table

    def remove(self, number: int) -> None:
        """Remove a shard, the table first, so that what is left of it counts as none; raises OSError."""
        for path in (self.table(number), checksum_path(self.data(number)), self.data(number)):
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what processes left that were killed or broken off while they wrote; raises OSError."""
        for left in self.folder.glob(".shard-*.part"):
            found = _PART.fullmatch(left.name)
            if found is None:
                continue
            with trying_lock(self.lock(int(found[1]))) as held:
                if held is Held.YES or (held is Held.UNKNOWN and _is_old(left)):
                    left.unlink(missing_ok=True)
        for left in self.folder.glob("shard-*.lock"):
            with trying_lock(left):
                pass  # one that nobody holds is removed behind us


def _table(content: Mapping[str, Any], images: range) -> Table:
    sizes = np.array(content["sizes"], dtype=np.int32).reshape(-1, 2)
    lacking = {int(place): Lacking(str(reason), bool(known)) for place, reason, known in content["lacking"]}
    table = Table(sizes, lacking)
    if content["first"] != images.start or len(sizes) != len(images):
        raise ValueError(f"it tells of {len(sizes)} images from {content['first']} on, not of {len(images)}")
    if table.num_bytes != content["num_bytes"] or {*np.flatnonzero(table.lengths <= 0).tolist()} != {*lacking}:
        raise ValueError("its numbers contradict each other")
    return table


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _LEFT_OVER_S
    except FileNotFoundError:
        return False
