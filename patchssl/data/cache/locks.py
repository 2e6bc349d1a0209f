"""Locks that the kernel lets go of when their process ends, however it ends."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path


class Held(Enum):
    """What came of trying to get a lock."""

    YES = "held by this process inside the block"
    BUSY = "held by another one"
    UNKNOWN = "the file system knows no locks"


@contextmanager
def trying_lock(path: Path) -> Iterator[Held]:
    """Try to get a lock, without waiting, and let go of it at the end of the block.

    Over NFS it counts on all hosts, unless the file system was mounted with locks of its own for each.

    Args:
        path: a file that is there only while the lock is held, or after a kill, when it holds nobody up.

    Raises:
        OSError: the file cannot be made.
    """
    handle, held = os.open(path, os.O_RDWR | os.O_CREAT, 0o644), Held.BUSY
    try:
        held = _try(handle, path)
        yield held
    finally:
        # Before it is let go of: whoever opened this file meanwhile finds that it is no longer the one at the path.
        if held is Held.YES:
            path.unlink(missing_ok=True)
        os.close(handle)


def _try(handle: int, path: Path) -> Held:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return Held.BUSY if error.errno in (errno.EAGAIN, errno.EACCES) else Held.UNKNOWN
    try:
        is_the_one = os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        is_the_one = False
    return Held.YES if is_the_one else Held.BUSY
