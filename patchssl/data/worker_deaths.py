"""Processes that read images and may die of it: noticed at once, and told with what they were at."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar

from torch.utils.data._utils import signal_handling

from patchssl.data.at_work import Notes
from patchssl.errors import LoaderError

Made = TypeVar("Made")

# How long a worker that has let go of its files may take until its end can be seen.
_SEEN_WITHIN_S = 1.0
_KILLED_WITHIN_S = 5.0

_BY_SIGNAL = {
    "SIGKILL": "so a system ends processes when memory runs out: take fewer --workers or a smaller --batch-size",
    "SIGBUS": "shared memory (/dev/shm) may be full: enlarge it or take fewer --workers; or the file was cut short "
    "while it was read",
}
_BY_FILE = "if it happens there again, put another image, or an empty file, which is left out, in the place of that one"


class _DeathSeen(BaseException):
    """Leads out of whatever waits for a worker that is dead; nobody else catches it."""


class Workers:
    """The processes of a data loader.

    Torch would raise an error as soon as one dies, wherever the main process is, in the middle of a step too, and in
    some cases wait for ever for what the dead one held. Here a death is looked for where the next batch is waited for.
    """

    def __init__(self, processes: Sequence[BaseProcess], notes: Notes) -> None:
        """Take processes that have just been started, and what they note."""
        self.processes, self._notes = processes, notes
        self._pid, self._is_waiting = os.getpid(), False
        self._before: Any = None

    def watch(self, before: Any) -> None:
        """From now on be told of deaths.

        Args:
            before: what the main process did about the end of a child before torch began to.
        """
        if self.processes and threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
            self._before = before
            signal.signal(signal.SIGCHLD, self._receive)

    def unwatch(self) -> None:
        """Leave the ends of children to what was there before."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and hasattr(signal, "SIGCHLD") and signal.getsignal(signal.SIGCHLD) == self._receive:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if self._before is None else self._before)

    def next_of(self, made: Iterator[Made]) -> Made:
        """The next of what the workers make.

        Raises:
            LoaderError: one of them is dead. The others are then ended as well.
        """
        try:
            return self._waited_for(made)
        except _DeathSeen:
            pass
        except Exception:
            # As of a connection that was cut; the end of who cut it can be seen a moment later.
            if not self._dies():
                raise
        dead = self._dead()
        told = self._told(next((process for process in dead if process.exitcode), dead[0]))
        self._abandon(made)
        raise LoaderError(told)

    def _waited_for(self, made: Iterator[Made]) -> Made:
        try:
            self._is_waiting = True
            if self._dead():
                raise _DeathSeen
            return next(made)
        finally:
            self._is_waiting = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """The end of a child, of this loader or another."""
        if os.getpid() != self._pid:
            return
        if callable(self._before) and getattr(self._before, "__module__", "") != signal_handling.__name__:
            self._before(number, frame)
        if self._is_waiting and self._dead():
            raise _DeathSeen

    def _dead(self) -> list[BaseProcess]:
        return [process for process in self.processes if process.exitcode is not None]

    def _dies(self) -> bool:
        """Whether one of them is dead or about to be."""
        by_sentinel = {process.sentinel: process for process in self.processes}
        for sentinel in wait([*by_sentinel], _SEEN_WITHIN_S) if by_sentinel else []:
            assert isinstance(sentinel, int)
            by_sentinel[sentinel].join(_SEEN_WITHIN_S)
        return bool(self._dead())

    def _told(self, process: BaseProcess) -> str:
        assert process.pid is not None
        at = self._notes.of(process.pid)
        how, advice = _ending(process.exitcode or 0)
        if at.startswith(("read ", "decoded ")):
            advice = advice or _BY_FILE
        doing = f"while it {at}" if at else "while it waited, or handed on what it had made"
        return f"a loader process (pid {process.pid}) {how} {doing}" + (f"; {advice}" if advice else "")

    def _abandon(self, made: Any) -> None:
        """End the workers, and keep the loader from waiting for what a dead one held: a lock, half a message."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(_KILLED_WITHIN_S)
        # Torch has no other way to be told that there is nothing to shut down any more.
        made._shutdown = True
        if made._worker_pids_set:
            # Else the next loader would be refused if it came to lie where this one did.
            signal_handling._remove_worker_pids(id(made))  # type: ignore[attr-defined]
            made._worker_pids_set = False
        if hasattr(made, "_pin_memory_thread_done_event"):
            made._pin_memory_thread_done_event.set()


def _ending(code: int) -> tuple[str, str]:
    """How a process ended, and what to do about it, whatever it was at."""
    if code >= 0:
        return f"ended with exit code {code}", ""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}", _BY_SIGNAL.get(name, "")


def started_since(others: set[BaseProcess]) -> list[BaseProcess]:
    """The children of this process that are not among others."""
    return [process for process in multiprocessing.active_children() if process not in others]
