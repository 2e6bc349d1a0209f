"""What images in shards of any kind have in common."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchssl.data.decode import decode
from patchssl.data.lanes import Blocks
from patchssl.data.shards.names import NamesInShards
from patchssl.data.shards.shard import Shard


class ShardSource(ABC):
    """Images in files that hold many, read where they lie.

    Attributes:
        ids: SHARD/NAME of each image.
        blocks: how they lie together.
    """

    blocks: Blocks

    def __init__(
        self, shards: Sequence[Shard], ids: NamesInShards, *, name: str, location: str, apply_exif: bool
    ) -> None:
        """Keep where the images lie.

        Args:
            shards: the files.
            ids: of the images in them.
            name: a short name of the data.
            location: the path as it was given.
            apply_exif: turn pictures upright.
        """
        self.ids, self.name, self.location, self.apply_exif = ids, name, location, apply_exif
        self.labels: NDArray[np.int64] | None = None
        self.classes: tuple[str, ...] = ()
        self._shards = tuple(shards)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Image.Image:
        """Decode one image as RGB; raises UnreadableImage, and DataError where its shard is gone or has changed."""
        return decode(self.fetch(index), self.where(index), apply_exif=self.apply_exif)

    @abstractmethod
    def where(self, index: int) -> str:
        """The file's path, and which of its images."""

    @abstractmethod
    def fetch(self, index: int) -> bytes:
        """The content of an image file; raises UnreadableImage, and DataError where its shard is gone or changed."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of names and sizes; contents are not read."""

    def state(self) -> str:
        """Hash of the fingerprint, of every shard's place and time of writing, and of how images are read."""
        digest = hashlib.sha256(f"exif {self.apply_exif}\n{self.fingerprint()}\n".encode())
        for shard in self._shards:
            digest.update(f"{shard.key}\0{_change(shard)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def _change(shard: Shard) -> str:
    """What changes with a local file's content. Anyone can set the time of writing, but nobody that of the change."""
    if shard.url is not None:
        return ""
    try:
        found = Path(shard.location).stat()
    except OSError:
        return "missing"
    return f"{found.st_ino} {found.st_ctime_ns}"
