"""What a cache of images holds: the shards that are whole, those that are missing, and what these will take."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from patchssl.data.cache.cached import CachedImages, of_tables
from patchssl.data.cache.folder import (
    Index,
    key_of,
    make_folder,
    others,
    read_index,
    told_bytes,
)
from patchssl.data.cache.locks import Held, trying_lock
from patchssl.data.cache.shard import Shards, Table
from patchssl.data.cache.shrinking import ShrunkImages
from patchssl.data.cache.writing import cannot_keep
from patchssl.data.decode import UnreadableImage
from patchssl.errors import DataError

logger = logging.getLogger(__name__)

_SHARD_IMAGES = 4096
_SHARD_BYTES = 256 << 20
# Few images are shared out among processes as well.
_NUM_SHARDS, _LEAST_SHARD_IMAGES = 32, 64
_NUM_SAMPLED = 64


@dataclass(frozen=True, eq=False)
class ImageCache:
    """A cache as it was found.

    Attributes:
        root: the folder of all caches.
        shrunk: the images as they are kept.
        state: theirs, when they were looked at.
        index: what the cache holds, or is to hold.
        missing: numbers of the shards that are not whole.
        image_bytes: of a missing image, in the mean of some; 0 if there is none.
    """

    root: Path
    shrunk: ShrunkImages
    state: str
    index: Index
    missing: list[int]
    image_bytes: int

    @property
    def shards(self) -> Shards:
        """Its files."""
        return Shards(self.root / key_of(self.state), self.index.num_images, self.index.shard_images)

    @property
    def missing_bytes(self) -> int:
        """What is to be written, about."""
        return self.image_bytes * self.shards.num_of(self.missing)

    def prepared(self) -> "ImageCache":
        """Make the folder, tell what is there and what is going to be made; the same, or as another process began it.

        Raises:
            DataError: it cannot be written, or will not hold what is missing.
        """
        if not self.missing:
            return self
        folder, cache = self.shards.folder, self
        with cannot_keep(folder):
            self.shards.sweep()
            self._check_space()
            _tell_of_others(self.root, folder)
            make_folder(self.root, folder, self.index)
            if read_index(folder) != self.index:  # another process was quicker
                cache = look_at(self.root, self.shrunk, self.state)
            cache._remove_damaged()
        logger.info(
            "making the cache of images %s: %s; %d of %d shards are missing, about %s",
            folder,
            cache.index.told(),
            len(cache.missing),
            len(cache.shards),
            told_bytes(cache.missing_bytes),
        )
        return cache

    def images(self) -> CachedImages:
        """The images of a cache that is whole; raises DataError for one that is not."""
        shards, tables = self.shards, []
        for number in range(len(shards)):
            try:
                tables.append(shards.read_table(number))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"the cache of images {shards.folder} is not whole: {error}; it must be one folder for all "
                    "processes and stay as it is while they run: start again"
                ) from None
        return of_tables(self.shrunk, shards, tables, self.state)

    def _check_space(self) -> None:
        place = next(path for path in (self.shards.folder, *self.shards.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        if self.missing_bytes > free:
            raise DataError(
                f"the cache of images {self.shards.folder} takes about {told_bytes(self.missing_bytes)} more "
                f"({self.shards.num_of(self.missing):,} images of {told_bytes(self.image_bytes)} in the mean, shorter "
                f"side at most {self.index.side} px), and {told_bytes(free)} are free there; free some space, or take "
                "another --cache-images DIR or a smaller data.cache_side"
            )

    def _remove_damaged(self) -> None:
        """Remove shards that are there and count as missing, unless another process is at them or has mended them."""
        for number in self.missing:
            if not self.shards.has(number):
                continue
            with trying_lock(self.shards.lock(number)) as held:
                if held is not Held.BUSY and _whole(self.shards, number, self.shrunk) is None:
                    self.shards.remove(number)


def look_at(root: Path, shrunk: ShrunkImages, state: str, shard_images: int | None = None) -> ImageCache:
    """Find out what of a cache is there.

    Args:
        root: the folder of all caches.
        shrunk: the images as they are kept.
        state: theirs.
        shard_images: in a shard of a cache that is not there yet; None: by the size of images.
    """
    folder = root / key_of(state)
    index = read_index(folder)
    image_bytes = 0
    if index is None:
        image_bytes = _mean_bytes(shrunk)
        fitting = shard_images or fitting_shard(len(shrunk), image_bytes)
        index = Index(shrunk.location, len(shrunk), shrunk.side, fitting, state)
    cache = ImageCache(root, shrunk, state, index, [], image_bytes)
    shards = cache.shards
    missing = [number for number in range(len(shards)) if _whole(shards, number, shrunk, tell=True) is None]
    return replace(cache, missing=missing, image_bytes=image_bytes or (_mean_bytes(shrunk) if missing else 0))


def fitting_shard(num_images: int, image_bytes: int) -> int:
    """How many images a shard takes: not too many bytes, and few enough images that there are several shards."""
    few = max(_LEAST_SHARD_IMAGES, -(-num_images // _NUM_SHARDS))
    return min(_SHARD_IMAGES, max(1, _SHARD_BYTES // max(1, image_bytes)), few)


def _whole(shards: Shards, number: int, shrunk: ShrunkImages, *, tell: bool = False) -> Table | None:
    """What a shard holds; None where it is missing, damaged, or lacks images whose content can be had by now."""
    try:
        table = shards.read_table(number)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if tell:
            logger.warning("a shard of the cache of images is made again: %s", error)
        return None
    first = shards.images(number).start
    for place, entry in table.lacking.items():
        if not entry.was_fetched and _can_be_fetched(shrunk, first + place):
            if tell:
                logger.info("%s can be read by now: its shard is made again", shrunk.where(first + place))
            return None
    return table


def _can_be_fetched(shrunk: ShrunkImages, index: int) -> bool:
    try:
        shrunk.source.fetch(index)
    except UnreadableImage:
        return False
    return True


def _mean_bytes(shrunk: ShrunkImages) -> int:
    """Of an image as it is kept, by the headers of some; 0 if none of them can be read."""
    found = []
    num = min(_NUM_SAMPLED, len(shrunk))
    for number in range(num):
        try:
            height, width = shrunk.size_px(number * len(shrunk) // num)
        except UnreadableImage:
            continue
        found.append(3 * height * width)
    return round(sum(found) / max(1, len(found)))


def _tell_of_others(root: Path, folder: Path) -> None:
    for index, num in others(root, folder):
        logger.info("%s holds another cache: %s, %s", root, index.told(), told_bytes(num))
