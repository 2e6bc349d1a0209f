"""Copies of remote shards on this machine."""

import errno
import hashlib
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from patchssl.atomic import replacing
from patchssl.data.shards.shard import Shard
from patchssl.data.shards.storage import file_system, trying
from patchssl.errors import DataError
from patchssl.user_cache import CACHE_VARIABLE, user_cache

logger = logging.getLogger(__name__)

_NUM_AT_ONCE = 4
_PATIENCE_S = 5.0
_ADVICE = f"; make room, or set {CACHE_VARIABLE} to a folder with more"
_LATER = "; what has been copied is kept, so that the same command goes on from there"


def copies_folder() -> Path:
    """Where copies are kept; they can be removed when no training reads them."""
    return user_cache() / "shards"


def local_copy(shard: Shard, given_up: threading.Event | None = None) -> Path:
    """The file of a shard on this machine, which is made if it is not there.

    Several processes may ask at once: one copies, the others wait. A copy is whole or not there.

    Args:
        shard: a remote one, or a local one, whose own path is returned.
        given_up: when set, copying ends.

    Raises:
        DataError: it cannot be read, or not be written.
    """
    if shard.url is None:
        return Path(shard.location)
    digest = hashlib.sha256(shard.key.encode(errors="surrogateescape")).hexdigest()[:32]
    try:
        path = copies_folder() / f"{digest}{PurePosixPath(shard.name).suffix}"
        if _is_whole(path, shard):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        given_up = given_up or threading.Event()
        with _locked(path, shard, given_up):
            if not _is_whole(path, shard):
                _copy(shard, path, given_up)
    except OSError as error:
        raise DataError(f"no copy of {shard.location} can be made: {error}{_ADVICE}") from None
    return path


def copy_all(shards: Sequence[Shard]) -> Iterator[tuple[Shard, Path]]:
    """Copy several shards, some at a time; each is handed on as soon as it and those before it are there.

    Raises:
        DataError: as local_copy does.
    """
    given_up = threading.Event()
    with ThreadPoolExecutor(_NUM_AT_ONCE) as pool:
        try:
            copies = [pool.submit(local_copy, shard, given_up) for shard in shards]
            for shard, copy in zip(shards, copies, strict=True):
                yield shard, copy.result()
        finally:
            given_up.set()
            pool.shutdown(cancel_futures=True)


def _is_whole(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.size
    except OSError:
        return False


def _copy(shard: Shard, path: Path, given_up: threading.Event) -> None:
    # Nobody else writes these while the lock is held; a process that was killed has left them.
    for leftover in path.parent.glob(f".{path.name}.*.part"):
        leftover.unlink(missing_ok=True)
    if (free := shutil.disk_usage(path.parent).free) < shard.size:
        raise DataError(
            f"{shard.location} has {shard.size:,} bytes, and {path.parent}, where it is copied to, has "
            f"{free:,} left{_ADVICE}"
        )
    logger.info("copying %s (%.1f MiB) to %s", shard.location, shard.size / 2**20, path)
    with replacing(path) as temporary:
        trying(
            f"{shard.location} cannot be copied",
            lambda: _download(shard, temporary, given_up),
            advice=_LATER,
            wait=given_up.wait,
        )


def _download(shard: Shard, target: Path, given_up: threading.Event) -> None:
    from fsspec.callbacks import Callback

    class Watching(Callback):  # type: ignore[misc]
        """Ends a copy that nobody wants any more, and one that outgrows what was told of its size."""

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            _check_wanted(shard, given_up)
            if self.value > shard.size:
                raise DataError(f"{shard.location} has changed: it had {shard.size:,} bytes, and sends more")

    assert shard.url is not None
    _check_wanted(shard, given_up)
    system, _ = file_system(shard.url)
    try:
        system.get_file(shard.path, str(target), callback=Watching())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"{target.parent} has no room for a copy of {shard.location}{_ADVICE}") from None
        raise
    if (got := target.stat().st_size) != shard.size:
        raise ConnectionError(f"{got:,} of {shard.size:,} bytes came")


def _check_wanted(shard: Shard, given_up: threading.Event) -> None:
    if given_up.is_set():
        raise DataError(f"copying {shard.location} was given up")


@contextmanager
def _locked(path: Path, shard: Shard, given_up: threading.Event) -> Iterator[None]:
    """Let no other process make the same copy."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f"{path.name}.lock"))
    waiting = False
    while True:
        try:
            lock.acquire(timeout=_PATIENCE_S)
            break
        except Timeout:
            _check_wanted(shard, given_up)
            if not waiting:
                logger.info("waiting for another process, which copies %s", shard.location)
            waiting = True
        except NotImplementedError:
            # A file system without locks: it may be copied twice, and the copy that is ready last takes the place.
            break
    try:
        yield
    finally:
        lock.release()
