"""Reads at positions of shards, with few open files, in any process."""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from patchssl.data.shards.copying import local_copy
from patchssl.data.shards.shard import Shard, changed, lost, open_unchanged

#: Open at a time: those of all lanes, and some to pass over to.
MAX_OPEN = 96


class _Open:
    """A file descriptor, closed when nobody reads from it any more."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __del__(self) -> None:
        os.close(self.handle)


class PositionedReads:
    """Reads bytes of shards.

    Positions are given with each read, so that processes that were forked may share what their parent opened. What is
    sent to another process opens its own.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Open nothing yet."""
        self._shards = shards
        self._begin()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """So many bytes of a shard.

        Raises:
            DataError: it is gone, has changed or cannot be read.
            OSError: the disk cannot read this part of it (EIO).
        """
        shard = self._shards[number]
        found = self._opened(number)
        try:
            content = _pread(found.handle, size, offset)
        except OSError as error:
            if error.errno == errno.EIO:
                raise
            raise lost(shard, f"can no longer be read: {error.strerror or error}") from None
        if len(content) < size:
            raise lost(shard, f"has changed: it ends at byte {offset + len(content):,}, and had {shard.size:,}")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {"_shards": self._shards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._shards = state["_shards"]
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def _opened(self, number: int) -> _Open:
        """The open file of a shard, which is still what it was."""
        if self._process != os.getpid():
            self._begin()  # a thread of the parent may have held the lock when this process was forked
        shard = self._shards[number]
        with self._lock:
            found = self._open.pop(number, None)
            # What has changed or is gone from its place is opened again: its like may have taken that.
            if found is None or not _is_current(shard, found.handle):
                found = _Open(open_unchanged(shard, local_copy(shard)))
            self._open[number] = found
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        return found


def _is_current(shard: Shard, handle: int) -> bool:
    """Whether an open file is still the shard: the one in its place, or of a remote one the copy that was made."""
    opened = os.fstat(handle)
    if changed(shard, opened) or shard.url is not None:
        return not changed(shard, opened)
    try:
        return os.path.samestat(os.stat(shard.location), opened)  # noqa: PTH116 - of each image that is read
    except OSError:
        return False


def _pread(handle: int, size: int, offset: int) -> bytes:
    content = os.pread(handle, size, offset)
    while len(content) < size and (more := os.pread(handle, size - len(content), offset + len(content))):
        content += more
    return content
