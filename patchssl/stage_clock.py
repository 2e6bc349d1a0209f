"""Which stages time goes into, on processors and on GPUs, which work behind them."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Literal, Protocol

import torch

#: Of a training: until a batch has come; its way to the device; views made of it there; the backbones of teacher and
#: student; heads, prototypes, pairs, targets and losses, with the gradients that the loss forms at once; the gradients
#: of all else; clipping, optimizer, centres and teacher; writing metrics; asking about the teacher; checkpoints; the
#: rest. Of a loader: reading, decoding, augmenting (cutting views out), the rest.
Stage = Literal[
    "waiting",
    "moving",
    "augmenting",
    "forward",
    "loss",
    "backward",
    "update",
    "logging",
    "measuring",
    "saving",
    "reading",
    "decoding",
    "other",
]

# So many events may lie on a GPU unread; some hundred steps are between two lines of metrics at times.
_MOST_EVENTS = 512


class Stages(Protocol):
    """What is told which stage is going on."""

    def stage(self, name: Stage) -> AbstractContextManager[None]:
        """Count what is done inside to a stage."""
        ...


class _Untimed:
    def stage(self, name: Stage) -> AbstractContextManager[None]:
        return nullcontext()


#: For those who do not ask where the time goes.
UNTIMED: Stages = _Untimed()


class Laps(Protocol):
    """Adds up the time from one mark to the next."""

    def mark(self, stage: Stage, *, after_error: bool = False) -> None:
        """What has passed since the last mark belongs to a stage, which ends by an error or in good order."""
        ...

    def read(self) -> dict[str, float]:
        """Seconds by stage, of all that has been marked since the last reading."""
        ...


class StageClock:
    """Seconds of stages, each without those that it contains; together they are all that has passed.

    What belongs to no stage is "other". A clock is for one thread.
    """

    def __init__(self, laps: Laps | None = None) -> None:
        """Start; without laps, with those of the processor."""
        self._laps = laps or HostLaps()
        self._open: list[Stage] = ["other"]

    def stage(self, name: Stage) -> AbstractContextManager[None]:
        """Count what is done inside to a stage, and no longer to the one around it."""
        return _Inside(self._laps, self._open, name)

    def read(self) -> dict[str, float]:
        """Seconds by stage since the last reading; those without any are left out. A GPU is waited for."""
        self._laps.mark(self._open[-1])
        return self._laps.read()


class _Inside:
    __slots__ = ("_laps", "_name", "_open")

    def __init__(self, laps: Laps, opened: list[Stage], name: Stage) -> None:
        self._laps, self._open, self._name = laps, opened, name

    def __enter__(self) -> None:
        self._laps.mark(self._open[-1])
        self._open.append(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._laps.mark(self._open.pop(), after_error=kind is not None)


class HostLaps:
    """By a clock of the processor.

    Of a device that works behind it, as MPS does, these are the times of handing work over: what it is busy with is
    counted where somebody waits for its answer, at the update.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """Start; now gives seconds."""
        self._now, self._last = now, now()
        self._seconds: dict[str, float] = {}

    def mark(self, stage: Stage, *, after_error: bool = False) -> None:
        """What has passed since the last mark belongs to a stage."""
        now = self._now()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Seconds by stage since the last reading."""
        seconds, self._seconds = self._seconds, {}
        return seconds


class Event(Protocol):
    """A mark in the work of a GPU, as `torch.cuda.Event` is one."""

    def record(self, stream: Any = None) -> None:
        """Put it behind the work that a stream has been handed until now."""
        ...

    def query(self) -> bool:
        """Whether the GPU has come to it."""
        ...

    def synchronize(self) -> None:
        """Wait for that."""
        ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this one to a later one, when the GPU has come to both."""
        ...


class EventLaps:
    """By events in the work of a GPU, which is waited for only when they are read.

    A stage lasts as long as the GPU has its work before it, and as it has none while the processor is in the stage. So
    waiting for data is what the GPU could not fill with what had been handed to it before.
    """

    def __init__(self, new_event: Callable[[], Event], stream: Callable[[], Any] = lambda: None) -> None:
        """Start.

        Args:
            new_event: makes an event.
            stream: the one that work is handed to.
        """
        self._new_event, self._stream = new_event, stream
        self._seconds: dict[str, float] = {}
        self._spare: list[Event] = []
        self._ahead: deque[tuple[Stage, Event]] = deque()
        self._last = self._recorded()

    def mark(self, stage: Stage, *, after_error: bool = False) -> None:
        """What has passed since the last mark belongs to a stage.

        After an error it goes to the stage of the next mark: a GPU that has failed would only fail again.
        """
        if after_error:
            return
        self._ahead.append((stage, self._recorded()))
        if len(self._ahead) > _MOST_EVENTS:
            while self._ahead and self._ahead[0][1].query():
                self._take()

    def read(self) -> dict[str, float]:
        """Seconds by stage since the last reading; waits for the GPU to come to the last mark."""
        while self._ahead:
            self._ahead[0][1].synchronize()
            self._take()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _recorded(self) -> Event:
        event = self._spare.pop() if self._spare else self._new_event()
        event.record(self._stream())
        return event

    def _take(self) -> None:
        stage, event = self._ahead.popleft()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + self._last.elapsed_time(event) / 1000
        self._spare.append(self._last)
        self._last = event


def clock_of(device: str) -> StageClock:
    """The clock for work on a device: cpu, cuda or mps; cuda:N for the GPU of that number."""
    where = torch.device(device)
    if where.type != "cuda":
        return StageClock()
    return StageClock(EventLaps(lambda: torch.cuda.Event(enable_timing=True), lambda: torch.cuda.current_stream(where)))
