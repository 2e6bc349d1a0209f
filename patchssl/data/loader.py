"""Batches that depend on the seed and the step alone."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from patchssl.data.decode import UnreadableImage
from patchssl.data.images import StoredSource
from patchssl.data.samples import ALONE, Opened, Reader, Samples, Share, StageClock
from patchssl.errors import DataError, PatchsslError
from patchssl.structs import CropPlan, SampleKeys

Made = TypeVar("Made")
MadeFor = TypeVar("MadeFor", covariant=True)

# How long workers may take to end what they are making, and how often each looks whether the main process is there.
_LET_END_S = 2.0
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Loaded(Generic[MadeFor]):
    """What a process takes of a batch.

    Attributes:
        made: of its images.
        keys: of its samples.
        bad: what could not be read.
        seconds: what making it took, by stage: reading, decoding, augmenting (cutting views out).
    """

    made: MadeFor
    keys: SampleKeys
    bad: list[UnreadableImage]
    seconds: dict[str, float]

    def pin_memory(self) -> "Loaded[MadeFor]":
        """The same in page-locked memory, as a data loader asks for before a copy to a GPU."""
        made: Any = self.made
        pinned: Any = [part.pin_memory() for part in made] if isinstance(made, list) else made.pin_memory()
        return replace(self, made=pinned)


class Division(Protocol[MadeFor]):
    """What loader processes make of images."""

    def plan(self, sizes: Tensor, keys: SampleKeys, reducible: Tensor) -> CropPlan:
        """Say which parts of images (B, 2) high and wide are needed, and at what reduction they may be decoded."""
        ...

    def make(self, images: list[NDArray[np.uint8]], plan: CropPlan) -> MadeFor:
        """Make what is handed on of the images (h, w, 3) as they were decoded."""
        ...


class TrainingBatches(Dataset[Loaded[Made]], Generic[Made]):
    """The batch of every training step.

    Step after step the source is gone through in an order shuffled anew for each epoch; a batch may begin in one
    epoch and end in the next, so no image is left out and a source may be smaller than a batch. An unreadable image
    is replaced by the next one of the source that can be read.
    """

    def __init__(
        self,
        source: StoredSource,
        division: Division[Made],
        *,
        batch_size: int,
        num_steps: int,
        seed: int,
        share: Share = ALONE,
    ) -> None:
        """Keep what is needed to make any batch.

        Args:
            source: the images.
            division: turns the images of a batch into what is handed on.
            batch_size: images in a batch, of all processes together.
            num_steps: steps of the whole training.
            seed: of the order.
            share: what this process takes of it.
        """
        self.source, self.division = source, division
        self.samples = Samples(source, batch_size=batch_size, seed=seed, share=share)
        self.num_steps = num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Loaded[Made]:
        """This process's share of the batch of a step."""
        keys, clock = self.samples.of_step(step), StageClock()
        reader = Reader(self.source, clock)
        rows = [reader.first(index) for index in keys.index.tolist()]
        images, plan = self._decoded(reader, rows, keys)
        with clock.stage("augmenting"):
            made = self.division.make(images, plan)
        return Loaded(made, keys, reader.bad, clock.seconds)

    def _decoded(
        self, reader: Reader, rows: list[Opened], keys: SampleKeys
    ) -> tuple[list[NDArray[np.uint8]], CropPlan]:
        """Decode images as far as their views need; where one is damaged the next takes its place, and its size."""
        while True:
            sizes = torch.tensor([opened.size_px for opened in rows])
            plan = self.division.plan(sizes, keys, torch.tensor([opened.is_reducible for opened in rows]))
            images = [
                reader.decoded(opened, reduction)
                for opened, reduction in zip(rows, plan.reductions.tolist(), strict=True)
            ]
            whole = [image for image in images if image is not None]
            if len(whole) == len(images):
                return whole, plan
            rows = [
                reader.again(opened) if image is not None else reader.next_after(opened)
                for opened, image in zip(rows, images, strict=True)
            ]


class Steps(Protocol[MadeFor]):
    """What is made for each step of a training, in any process and any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> MadeFor: ...


def iterate(batches: Steps[Made], *, first_step: int, workers: int, pin_memory: bool) -> Generator[Made, None, None]:
    """The batches from first_step to the last, made ahead of time by worker processes, which are started here.

    Args:
        batches: the batch of every step.
        first_step: where to begin.
        workers: processes; 0 makes them in this one.
        pin_memory: for copies to a GPU that overlap computing.

    Raises:
        DataError: no image of the source can be read.
    """
    loader = DataLoader(
        _Reported(batches),
        batch_size=None,
        sampler=range(first_step, len(batches)),
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        # Its own generator keeps the loader from drawing on the global one, on which stochastic depth depends.
        generator=torch.Generator(),
        worker_init_fn=leave_signals_to_the_main_process,
    )
    others = set(multiprocessing.active_children())
    try:
        with _signals_held():
            made = iter(loader)
        return _handed_on(made, set(multiprocessing.active_children()) - others)
    except BaseException:
        _let_end(set(multiprocessing.active_children()) - others)
        raise


def _handed_on(made: Iterator[Any], workers: set[BaseProcess]) -> Generator[Any, None, None]:
    """Hand on what workers make; afterwards let them end, or end them."""
    try:
        for batch in made:
            if isinstance(batch, PatchsslError):
                raise batch
            yield batch
    finally:
        _let_end(workers)


def _let_end(workers: set[BaseProcess]) -> None:
    """End workers that have not ended in a while.

    The loader waits for one worker after another, as long as each takes for what it is making, which nobody wants any
    more. Ended at once, one could leave half a message to the thread that pins memory.
    """
    if workers:
        timer = threading.Timer(_LET_END_S, _end_those_left, [workers])
        timer.daemon = True
        timer.start()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait: a worker is born into this, and so not ended before it leaves them to its parent."""
    if not hasattr(signal, "sigtimedwait"):
        yield  # there workers have no other way to learn of a SIGTERM that is meant for them
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_main_process(worker: int) -> None:
    """Keep a worker alive when Ctrl-C, or SIGTERM from a scheduler, reaches the whole group of processes.

    The main process then ends its step, saves, and lets the workers end through their queue. SIGTERM from the main
    process itself ends a worker: so Python ends those that an error left behind, and waits for them before it exits.
    When the main process is killed, a worker ends as well, whatever it is doing. A batch that nobody fetches any more
    is no news.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = partial(tell_unless_broken_off, sys.excepthook)
    # Not on every system; where it is missing, SIGTERM from anyone ends a worker.
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def tell_unless_broken_off(
    tell: Callable[[type[BaseException], BaseException, TracebackType | None], object],
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    """Say nothing of a main process that stops while a worker hands it a batch."""
    if not isinstance(error, EOFError | ConnectionError):
        tell(kind, error, trace)


def _end_with_the_main_process() -> None:
    main = multiprocessing.parent_process()
    assert main is not None
    while os.getppid() == main.pid:
        received = signal.sigtimedwait({signal.SIGTERM}, _LOOK_EVERY_S)
        if received is not None and received.si_pid == main.pid:
            break
    os._exit(0)


def _end_those_left(workers: set[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.terminate()


class _Reported(Dataset[Any]):
    """Hands errors on as values: raised in a worker, they would reach the user with the worker's traceback inside."""

    def __init__(self, batches: Steps[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> Any:
        try:
            return self.batches[step]
        except PatchsslError as error:
            return error


class BadImages:
    """Counts unreadable images and stops when they are too many."""

    def __init__(self, num_images: int, max_fraction: float) -> None:
        """Allow max_fraction of num_images."""
        self.num_images, self.max_fraction = num_images, max_fraction
        self.reasons: dict[str, str] = {}

    def add(self, bad: list[UnreadableImage]) -> list[UnreadableImage]:
        """Take note of images and return those not seen before.

        Raises:
            DataError: more than the allowed fraction of all images is unreadable.
        """
        # One may be met twice at a time, by several processes or in place of several others.
        new = list({error.path: error for error in bad if error.path not in self.reasons}.values())
        self.reasons.update({error.path: error.reason for error in new})
        if len(self.reasons) > self.max_fraction * self.num_images:
            first = "; ".join(f"{path}: {reason}" for path, reason in list(self.reasons.items())[:3])
            raise DataError(
                f"{len(self.reasons)} of {self.num_images} images are unreadable, more than the allowed "
                f"{self.max_fraction:.1%} (--max-bad-fraction); for instance {first}"
            )
        return new
