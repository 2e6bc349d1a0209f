"""How a process writes the shards of a cache that are missing, beside other processes that do the same."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from patchssl.atomic import replacing
from patchssl.checksums import HashedWriter, checksum_line, checksum_path
from patchssl.data.cache.locks import Held, trying_lock
from patchssl.data.cache.shard import Lacking, Shards, Table
from patchssl.data.cache.shrinking import ShrunkImages, shrunk
from patchssl.data.decode import UnreadableImage
from patchssl.errors import DataError

#: Tells after every image, or wait, how many images more have been written.
Written: TypeAlias = Generator[int, None, None]


def write_missing(shards: Shards, source: ShrunkImages, numbers: Sequence[int]) -> Written:
    """Write those shards that no other process writes or has written; closed in between, it leaves no half shard.

    Where the file system knows no locks, several may write the same shard; they write the same, and it appears whole.

    Args:
        shards: where they go.
        source: the images as they are kept.
        numbers: of the shards, in the order in which they are tried.

    Yields:
        1 after every image.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    for number in numbers:
        if shards.has(number):
            continue
        with cannot_keep(shards.folder), trying_lock(shards.lock(number)) as held:
            if held is Held.BUSY or shards.has(number):
                continue
            if held is Held.YES:
                for left in shards.folder.glob(f".{shards.data(number).stem}.*.part"):
                    left.unlink(missing_ok=True)
            yield from _write(shards, source, number)


def _write(shards: Shards, source: ShrunkImages, number: int) -> Iterator[int]:
    images, path = shards.images(number), shards.data(number)
    sizes, lacking = np.zeros((len(images), 2), dtype=np.int32), dict[int, Lacking]()
    with replacing(path) as temporary, temporary.open("wb") as file:
        writer = HashedWriter(file)
        for place, index in enumerate(images):
            was_fetched = False
            try:
                stored = source.source.fetch(index)
                was_fetched = True
                pixels = shrunk(source.opened(stored, index), source.side)
            except UnreadableImage as error:
                lacking[place] = Lacking(error.reason, was_fetched)
            else:
                sizes[place] = pixels.shape[:2]
                writer.write(np.ascontiguousarray(pixels).reshape(-1).data)
            yield 1
    with replacing(checksum_path(path)) as temporary:
        temporary.write_bytes(checksum_line(path, writer.hexdigest()))
    shards.write_table(number, Table(sizes, lacking))


@contextmanager
def cannot_keep(folder: Path) -> Iterator[None]:
    """Say in words why images cannot be kept.

    Args:
        folder: of the cache.

    Raises:
        DataError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        named = f" ({error.filename})" if error.filename else ""
        raise DataError(
            f"images cannot be kept in {folder}: {reason}{named}; what is whole stays: free some space or make it "
            "writable and start again, or take another --cache-images DIR or a smaller data.cache_side"
        ) from None
