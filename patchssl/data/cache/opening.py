"""A folder, a source and a side → what of the cache is there and what is missing, and the images once it is whole."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

from patchssl import ranks
from patchssl.data.cache.cached import CachedImages
from patchssl.data.cache.contents import ImageCache, look_at
from patchssl.data.cache.folder import check_root
from patchssl.data.cache.processes import Crew, write_all
from patchssl.data.cache.shrinking import ShrunkImages
from patchssl.data.cache.writing import Written
from patchssl.data.images import StoredSource
from patchssl.errors import PatchsslError

logger = logging.getLogger(__name__)

# Processes that fill a cache together tell each other so often that they are still at it.
_BEAT_S = 20.0


def find_image_cache(source: StoredSource, root: Path, side: int, *, shard_images: int | None = None) -> ImageCache:
    """Look at what is kept of a source, and make nothing.

    Args:
        source: the originals.
        root: the folder of all caches; it need not be there.
        side: the shorter side of what is kept is at most this long, px.
        shard_images: images in a shard of a cache that is begun; None: by their size.

    Raises:
        DataError: the folder holds something else, or was made by a newer version.
    """
    check_root(root)
    shrunk = ShrunkImages(source, side)
    return look_at(root, shrunk, shrunk.state(), shard_images)


def open_image_cache(
    source: StoredSource,
    root: Path,
    side: int,
    *,
    workers: int,
    progress: Callable[[int], AbstractContextManager[Callable[[int], None]]] | None = None,
    shard_images: int | None = None,
) -> CachedImages:
    """The images of a source, decoded and shrunk, from a folder; what is missing there is made first.

    Every process of a training calls this; they share the work, with those of other trainings, too.

    Args:
        source: the originals.
        root: the folder of all caches; it need not be there.
        side: the shorter side of what is kept is at most this long, px.
        workers: processes that decode, for each that calls this; 0 decodes in this one.
        progress: given how many images are missing, surrounds making them and yields what is called with the number of
            those done since the last call.
        shard_images: images in a shard of a cache that is begun; None: by their size.

    Raises:
        DataError: the folder holds something else, cannot be written, or the disk is too small or full.
        FailedElsewhereError: that happened in another process.
    """
    with ranks.failing_together():
        cache = find_image_cache(source, root, side, shard_images=shard_images).prepared()
    _tell_of_several(cache)
    num_missing = cache.shards.num_of(cache.missing)
    if ranks.any_of(num_missing > 0):
        crew = Crew(workers, ranks.rank(), ranks.world_size())
        with nullcontext(_ignore) if progress is None else progress(num_missing) as show:
            _together(write_all(cache.shards, cache.shrunk, cache.missing, crew), show)
    with ranks.failing_together():
        return cache.images()


def _ignore(num: int) -> None:
    """Nobody wants to know."""


def _tell_of_several(cache: ImageCache) -> None:
    """Hosts with copies of their own see other files, which may change one by one."""
    folders = {str(folder) for folder in ranks.gather(cache.shards.folder)}
    if len(folders) > 1:
        logger.warning(
            "the processes see %s in %d states, as copies on several hosts are, so that each state gets a cache of its "
            "own below %s",
            cache.index.location,
            len(folders),
            cache.root,
        )


def _together(work: Written, show: Callable[[int], None]) -> None:
    """Go through work in all processes until each has done its own.

    They meet now and then: the first to end waits for hours otherwise, longer than processes may keep each other
    waiting, and would not hear that another one failed.
    """
    with closing(work):
        while True:
            failure, is_done = None, False
            try:
                is_done = _for_a_while(work, show)
            except PatchsslError as error:
                failure = error
            ranks.fail_together(failure)
            if not ranks.any_of(not is_done):
                return


def _for_a_while(work: Written, show: Callable[[int], None]) -> bool:
    """Whether the work is done."""
    until = time.monotonic() + _BEAT_S
    for num in work:
        if num:
            show(num)
        if time.monotonic() >= until:
            return False
    return True
