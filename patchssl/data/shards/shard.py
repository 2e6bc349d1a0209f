"""A shard: a file that holds many images, on this machine or elsewhere."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from patchssl.errors import DataError


@dataclass(frozen=True)
class Shard:
    """A file as it was when it was found.

    Attributes:
        name: its path below what is common to all shards, with strokes; equal on any machine.
        location: how messages name it; of a local one its path.
        size: in bytes.
        stamp: what changes when it is written anew: the time of writing, in ns, or what the server tells of it.
        url: of a remote one, as fsspec takes it; None of a local one.
        path: of a remote one, in the file system of its URL.
    """

    name: str
    location: str
    size: int
    stamp: str
    url: str | None = None
    path: str = ""

    @property
    def key(self) -> str:
        """What is kept of it is kept under this."""
        place = os.path.realpath(self.location) if self.url is None else f"{self.url}\0{self.path}"
        return f"{place}\0{self.size}\0{self.stamp}"


def local_shard(path: str, name: str) -> Shard:
    """Look at a file.

    Raises:
        OSError: it cannot be.
    """
    found = Path(path).stat()
    return Shard(name, path, found.st_size, str(found.st_mtime_ns))


def open_unchanged(shard: Shard, path: str | Path) -> int:
    """Open a shard's file and make sure that it is what it was.

    Returns:
        A file descriptor.

    Raises:
        DataError: it is gone, or another, or cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise lost(shard, "is no longer there") from None
    except OSError as error:
        raise lost(shard, f"can no longer be opened: {error.strerror or error}") from None
    told = changed(shard, os.fstat(handle))
    if told:
        os.close(handle)
        raise lost(shard, told)
    return handle


def changed(shard: Shard, found: os.stat_result) -> str:
    """How a file differs from the shard, in words; empty if it does not."""
    if found.st_size != shard.size:
        return f"has changed: it had {shard.size:,} bytes when it was opened, and has {found.st_size:,}"
    if shard.url is None and str(found.st_mtime_ns) != shard.stamp:
        return "has been written anew since it was opened"
    return ""


def lost(shard: Shard, told: str) -> DataError:
    """What to say of a shard that is not what it was when it was opened."""
    return DataError(f"{shard.location} {told}; put it back as it was, then go on (pretrain: with --resume)")


def common_names(paths: Sequence[str]) -> list[str]:
    """The part of each path that begins behind the deepest folder common to all.

    Args:
        paths: with strokes, each once.
    """
    folders = [path.split("/")[:-1] for path in paths]
    num = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
    return ["/".join(path.split("/")[num:]) for path in paths]
