"""Whatever is made of images, made ahead of time by processes and handed on in order."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from patchssl.data.at_work import Notes
from patchssl.data.worker_deaths import Workers, started_since
from patchssl.data.worker_signals import leave_signals_to_the_main_process, signals_held
from patchssl.errors import PatchsslError, UnforeseenError

Made = TypeVar("Made")
Place = TypeVar("Place", contravariant=True)
MadeFor = TypeVar("MadeFor", covariant=True)

# How long workers may take to end what they are making.
_LET_END_S = 2.0


class Items(Protocol[Place, MadeFor]):
    """What is made for each of several places, in any process and any order."""

    def __getitem__(self, place: Place) -> MadeFor: ...


def made_ahead(
    items: Items[Any, Made], places: Sequence[Any], *, workers: int, prefetch: int = 2, pin_memory: bool = False
) -> Generator[Made, None, None]:
    """The items of places, in their order, made ahead of time by worker processes, which are started here.

    Args:
        items: makes each.
        places: of the items.
        workers: processes of one thread each; 0 makes them in this one, when they are asked for.
        prefetch: how many each process makes ahead.
        pin_memory: for copies to a GPU that overlap computing.

    Raises:
        PatchsslError: an item could not be made.
        UnforeseenError: an item could not be made, and why is known to its traceback only.
        LoaderError: a process died.
    """
    notes = Notes(max(1, workers))
    loader = DataLoader(
        _Reported(items, notes),
        batch_size=None,
        sampler=places,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if workers else None,
        # Its own generator keeps the loader from drawing on the global one, on which stochastic depth depends.
        generator=torch.Generator(),
        worker_init_fn=leave_signals_to_the_main_process,
    )
    others = set(multiprocessing.active_children())
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    try:
        with signals_held():
            made = iter(loader)
        started = Workers(started_since(others), notes)
        started.watch(before)
        return _handed_on(made, len(places), started)
    except BaseException:
        _let_end(started_since(others))
        raise


def _handed_on(made: Iterator[Any], num: int, workers: Workers) -> Generator[Any, None, None]:
    """Hand on what workers make; afterwards let them end, or end them."""
    try:
        for _ in range(num):
            item = workers.next_of(made)
            if isinstance(item, _Raised):
                item.throw()
            yield item
            del item
        # Nothing is left to be made: they end.
        next(made, None)
    finally:
        workers.unwatch()
        _let_end(workers.processes)


def _let_end(workers: Sequence[BaseProcess]) -> None:
    """End workers that have not ended in a while.

    The loader waits for one worker after another, as long as each takes for what it is making, which nobody wants any
    more. Ended at once, one could leave half a message to the thread that pins memory.
    """
    if workers:
        timer = threading.Timer(_LET_END_S, _end_those_left, [workers])
        timer.daemon = True
        timer.start()


def _end_those_left(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.terminate()


@dataclass(frozen=True)
class _Raised:
    """An error as a value: raised in a worker, it would reach the user with the worker's traceback inside.

    Attributes:
        error: to be raised.
        cause: what it came of: an error, or the text of its traceback from another process.
    """

    error: PatchsslError | MemoryError
    cause: BaseException | str | None = None

    def throw(self) -> None:
        """Raise it here."""
        raise self.error from _Traceback(self.cause) if isinstance(self.cause, str) else self.cause


class _Traceback(Exception):  # noqa: N818 - it stands for the error of another process
    """Where in a worker an error came from; shown with --debug."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Reported(Dataset[Any]):
    """Makes items where their maker's note is kept, and hands errors on as values."""

    def __init__(self, items: Items[Any, Any], notes: Notes) -> None:
        self._items, self._notes = items, notes

    def __getitem__(self, place: Any) -> Any:
        worker, pid = get_worker_info(), os.getpid()
        with self._notes.taken(0 if worker is None else worker.id, pid):
            try:
                return self._items[place]
            except PatchsslError as error:
                return _Raised(error)
            except Exception as error:
                at = self._notes.of(pid)
                told = ": ".join(filter(None, (type(error).__name__, str(error)))) + (f" (while it {at})" if at else "")
                kind = MemoryError if isinstance(error, MemoryError) else UnforeseenError
                trace = "".join(traceback.format_exception(error))
                return _Raised(kind(told), error if worker is None else trace)


def _unchanged(item: Made) -> Made:
    return item
