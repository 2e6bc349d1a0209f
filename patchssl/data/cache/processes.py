"""Several processes that write the missing shards of a cache, and waiting for those that others write."""

import logging
import math
import multiprocessing
import time
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from patchssl.data.cache.locks import Held, trying_lock
from patchssl.data.cache.shard import Shards
from patchssl.data.cache.shrinking import ShrunkImages
from patchssl.data.cache.writing import Written, cannot_keep, write_missing
from patchssl.data.worker_signals import leave_signals_to_the_main_process
from patchssl.errors import DataError

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_LOOK_EVERY_S = 2.0
_TELL_EVERY_S = 60.0
# An image takes that long at most, unless its disk does not answer.
_LET_END_S = 3.0


@dataclass(frozen=True)
class Crew:
    """Who writes.

    Attributes:
        workers: processes; 0 writes in this one.
        rank: of this process among those that write together.
        num_processes: how many these are.
    """

    workers: int
    rank: int = 0
    num_processes: int = 1

    def order(self, numbers: Sequence[int], number: int, num: int) -> list[int]:
        """In which order one of the workers tries shards: each begins elsewhere, so that few want the same."""
        start = int((self.rank + number / num) / self.num_processes * len(numbers))
        return [*numbers[start:], *numbers[:start]]


def write_all(shards: Shards, source: ShrunkImages, missing: Sequence[int], crew: Crew) -> Written:
    """Write missing shards, and wait for those that other processes write; what one leaves that dies is taken over.

    Args:
        shards: where they go.
        source: the images as they are kept.
        missing: numbers of shards.
        crew: who writes.

    Yields:
        How many images more are in the cache, by anyone's work; again and again, 0 as well.

    Raises:
        DataError: the disk is full or cannot be written, or a process was killed.
    """
    left, tally = list(missing), _Tally(shards, missing)
    try:
        while left:
            with closing(_write(shards, source, left, crew)) as written:
                for num in written:
                    yield tally.more(num)
            yield tally.more(0, look=True)
            left = yield from _wait(shards, left, tally)
    finally:
        # What is left by a process that had to be ended, or by a signal at the wrong moment. Where even that fails, the
        # next start does it.
        with suppress(OSError):
            shards.sweep()


def _wait(shards: Shards, numbers: Sequence[int], tally: "_Tally") -> Generator[int, None, list[int]]:
    """Wait until nothing is missing, or something of it that nobody writes; returns what is missing."""
    told_at = -math.inf
    while left := _missing(shards, numbers):
        if any(_is_free(shards, number) for number in left):
            break
        if time.monotonic() - told_at >= _TELL_EVERY_S:
            logger.info("waiting for %d shards of %s that other processes write", len(left), shards.folder)
            told_at = time.monotonic()
        time.sleep(_POLL_S)
        yield tally.more(0)
    yield tally.more(0, look=True)
    return left


class _Tally:
    """Counts images: those of this process at once, those of others by the shards that are whole."""

    def __init__(self, shards: Shards, missing: Sequence[int]) -> None:
        self._shards, self._missing = shards, missing
        self._total = shards.num_of(missing)
        self._own = self._told = 0
        self._looked_at = time.monotonic()

    def more(self, own: int, *, look: bool = False) -> int:
        """How many more there are since the last call, of which this process made some."""
        self._own += own
        done = self._own
        if look or time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            done = max(done, self._total - self._shards.num_of(_missing(self._shards, self._missing)))
        more = max(0, min(done, self._total) - self._told)
        self._told += more
        return more


def _missing(shards: Shards, numbers: Sequence[int]) -> list[int]:
    with cannot_keep(shards.folder):
        return shards.missing_of(numbers)


def _is_free(shards: Shards, number: int) -> bool:
    """Whether nobody writes a shard that is missing."""
    with cannot_keep(shards.folder), trying_lock(shards.lock(number)) as held:
        return held is not Held.BUSY and not shards.has(number)


def _write(shards: Shards, source: ShrunkImages, missing: Sequence[int], crew: Crew) -> Written:
    """Write what nobody else writes."""
    if crew.workers:
        return _in_processes(shards, source, missing, crew)
    return write_missing(shards, source, crew.order(missing, 0, 1))


@dataclass(frozen=True)
class _Writer:
    """A process that writes.

    Attributes:
        process: that runs.
        line: on which it says how many images it has written, and what it ended with.
    """

    process: BaseProcess
    line: Connection

    def heard(self) -> int:
        """How many images it has written since it was last heard; raises what it ended with."""
        num, is_alive = 0, self.process.is_alive()
        try:
            while self.line.poll():
                told = self.line.recv()
                if isinstance(told, Exception):
                    raise told
                num += told
        except (EOFError, ConnectionError):
            pass  # it has nothing more to say, and its exit code tells the rest
        if not is_alive and (code := self.process.exitcode):
            how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise DataError(
                f"a process that writes the cache of images was {how}, perhaps because memory ran out; what is whole "
                "stays: start again, with fewer --workers if memory is short"
            )
        return num

    def end(self) -> None:
        """Ask it to leave what it is at."""
        with suppress(OSError):  # it has ended
            self.line.send(None)


def _in_processes(shards: Shards, source: ShrunkImages, missing: Sequence[int], crew: Crew) -> Written:
    num = min(crew.workers, len(missing))
    writers: list[_Writer] = []
    try:
        for number in range(num):
            line, other_end = multiprocessing.Pipe()
            arguments = (shards, source, crew.order(missing, number, num), number, other_end)
            process = multiprocessing.Process(target=_work, args=arguments, daemon=True)
            process.start()
            writers.append(_Writer(process, line))
            other_end.close()
        while alive := [writer.process.sentinel for writer in writers if writer.process.is_alive()]:
            wait(alive, _POLL_S)
            yield sum(writer.heard() for writer in writers)
        yield sum(writer.heard() for writer in writers)
    finally:
        for writer in writers:
            writer.end()
        _end([writer.process for writer in writers])


def _work(shards: Shards, source: ShrunkImages, numbers: Sequence[int], number: int, line: Connection) -> None:
    leave_signals_to_the_main_process(number)
    num, told_at = 0, time.monotonic()
    with line, closing(write_missing(shards, source, numbers)) as written, suppress(ConnectionError):
        try:
            for more in written:
                num += more
                if line.poll():
                    return  # it is asked to end
                if time.monotonic() - told_at >= _POLL_S:
                    line.send(num)
                    num, told_at = 0, time.monotonic()
            line.send(num)
        except ConnectionError:
            raise  # the main process is gone
        # Raised here, it would reach the user with a traceback of this process.
        except Exception as error:
            line.send(error)


def _end(processes: Sequence[BaseProcess]) -> None:
    """Let processes end what they do, or end them."""
    until = time.monotonic() + _LET_END_S
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(_LET_END_S)
        if process.is_alive():
            process.kill()
            process.join()
