"""Images in tar files."""

import hashlib
from collections.abc import Sequence

import numpy as np

from patchssl.data.decode import UnreadableImage
from patchssl.data.lanes import Blocks
from patchssl.data.shards.names import NamesInShards
from patchssl.data.shards.positioned import PositionedReads
from patchssl.data.shards.shard import Shard
from patchssl.data.shards.source import ShardSource
from patchssl.data.shards.tar_index import LOST, NOT_STORED, TarIndex

MAX_IMAGE_BYTES = 1 << 30


class TarSource(ShardSource):
    """The images of tar files, one of each sample, read where they lie."""

    def __init__(
        self, shards: Sequence[Shard], indexes: Sequence[TarIndex], *, name: str, location: str, apply_exif: bool
    ) -> None:
        """Keep where the images lie.

        Args:
            shards: the files.
            indexes: of each.
            name: a short name of the data.
            location: the path as it was given.
            apply_exif: turn pictures upright.
        """
        ids = NamesInShards([shard.name for shard in shards], [index.names for index in indexes])
        super().__init__(shards, ids, name=name, location=location, apply_exif=apply_exif)
        self._lost = tuple(index.lost for index in indexes)
        self._offsets = np.concatenate([index.offsets for index in indexes])
        self._sizes = np.concatenate([index.sizes for index in indexes])
        self._names = tuple(index.names for index in indexes)
        self._reads = PositionedReads(self._shards)
        self.blocks = Blocks(np.array([len(index) for index in indexes], dtype=np.int64), np.arange(len(shards)))

    def where(self, index: int) -> str:
        """The shard's path and the member's name."""
        shard, number = self.ids.place(index)
        return f"{self._shards[shard].location}: {self._names[shard][number]}"

    def fetch(self, index: int) -> bytes:
        """The member's content.

        Raises:
            UnreadableImage: it is cut off, no regular file, or too large.
            DataError: its shard is gone or has changed.
        """
        shard, _ = self.ids.place(index)
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        if size == LOST or offset + size > self._shards[shard].size:
            raise UnreadableImage(self.where(index), self._lost[shard])
        if size == NOT_STORED:
            raise UnreadableImage(self.where(index), "is a link, a device or a sparse file; pack regular files")
        if size > MAX_IMAGE_BYTES:
            raise UnreadableImage(self.where(index), f"has {size:,} bytes; at most {MAX_IMAGE_BYTES:,} are read")
        try:
            return self._reads.read(shard, offset, size)
        except OSError as error:
            raise UnreadableImage(self.where(index), f"cannot be read: {error.strerror or error}") from None

    def fingerprint(self) -> str:
        """Hash of names and sizes of shards and members; contents are not read."""
        digest = hashlib.sha256()
        for shard, names in zip(self._shards, self._names, strict=True):
            digest.update(f"{shard.name}\0{shard.size}\0".encode(errors="surrogateescape"))
            digest.update(names.text + names.ends.astype("<i8").tobytes())
        digest.update(self._sizes.astype("<i8").tobytes())
        return digest.hexdigest()
