"""All shards of an extraction: which of them are stored, which are lacking, and where the new ones go."""

import logging
from collections.abc import Iterable, Sequence

from patchssl.errors import DataError
from patchssl.evaluate.extracting.store import Shard, Shelf, StoreError
from patchssl.pooling import Part

logger = logging.getLogger(__name__)

Lacking = list[tuple[int, tuple[Part, ...]]]


class ShardSet:
    """The shards of every part of M images, on disk or in memory."""

    def __init__(
        self, shelf: Shelf | None, parts: Sequence[Part], *, num_images: int, shard_images: int, must_store: bool
    ) -> None:
        """Look at nothing yet.

        Args:
            shelf: where shards are kept; None for memory.
            parts: of the descriptors.
            num_images: M.
            shard_images: images in a shard.
            must_store: memory is no way out when the shelf cannot be written.
        """
        self.parts, self.num_images, self.shard_images = tuple(parts), num_images, shard_images
        self._shelf, self._must_store = shelf, must_store
        self._is_writable = shelf is not None
        self._shards: dict[int, dict[Part, Shard]] = {number: {} for number in range(-(-num_images // shard_images))}

    def images(self, number: int) -> range:
        """The places of a shard's images in the source."""
        return range(number * self.shard_images, min((number + 1) * self.shard_images, self.num_images))

    def find(self) -> Lacking:
        """Read what is stored.

        Returns:
            The numbers of the other shards and the parts that each of them lacks.
        """
        if self._shelf is not None:
            self._shelf.sweep()
        self._read(self._shards)
        return [
            (number, tuple(part for part in self.parts if part not in found))
            for number, found in self._shards.items()
            if len(found) < len(self.parts)
        ]

    def keep(self, number: int, computed: dict[Part, Shard]) -> None:
        """Store the parts of a shard, or hold them in memory.

        Raises:
            StoreError: they have to be stored and cannot be.
        """
        if self._is_writable:
            assert self._shelf is not None
            try:
                for part, shard in computed.items():
                    self._shelf.write(str(part), number, shard)
                return
            except StoreError as error:
                if self._must_store:
                    raise
                self._is_writable = False
                logger.warning("going on without keeping features: %s", error)
        self._shards[number].update(computed)

    def complete(self) -> None:
        """Read what was stored since `find`.

        Raises:
            DataError: some of it is not there.
        """
        missing = [number for number, found in self._shards.items() if len(found) < len(self.parts)]
        self._read(missing)
        missing = [number for number in missing if len(self._shards[number]) < len(self.parts)]
        if missing:
            assert self._shelf is not None
            raise DataError(
                f"{len(missing)} of {len(self._shards)} shards of features that were just computed cannot be read from "
                f"{self._shelf.folder}; it must be one folder for all processes, and stay until they are done"
            )

    def of(self, part: Part) -> list[Shard]:
        """A part of all images, in order."""
        return [found[part] for found in self._shards.values()]

    def unreadable(self) -> list[tuple[int, str, str]]:
        """Index, path and reason of each image that cannot be read, as far as is known."""
        return [entry for found in self._shards.values() for entry in next((s.unreadable for s in found.values()), ())]

    def _read(self, numbers: Iterable[int]) -> None:
        if self._shelf is None:
            return
        for number in numbers:
            found = self._shards[number]
            for part in self.parts:
                if part not in found and (shard := self._shelf.read(str(part), self.images(number))) is not None:
                    found[part] = shard
            if len({shard.indices.tobytes() for shard in found.values()}) > 1:
                logger.warning("parts of %s are of different images and computed again", self._shelf.folder)
                found.clear()
