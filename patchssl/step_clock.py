"""What the time of a training goes into."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of training.

    Attributes:
        seconds: its length.
        waited_s: of these, until the loader had a batch ready.
        computed_s: of these, in steps; the rest went into saving and the like.
        num_images: how many were trained on.
    """

    seconds: float = 0.0
    waited_s: float = 0.0
    computed_s: float = 0.0
    num_images: int = 0

    def __add__(self, other: "Interval") -> "Interval":
        """Both together."""
        return Interval(
            self.seconds + other.seconds,
            self.waited_s + other.waited_s,
            self.computed_s + other.computed_s,
            self.num_images + other.num_images,
        )

    @property
    def wait_fraction(self) -> float:
        """The share of the time spent waiting; 0 of no time at all."""
        return self.waited_s / self.seconds if self.seconds else 0.0

    @property
    def images_per_s(self) -> float:
        """0 of no time at all."""
        return self.num_images / self.seconds if self.seconds else 0.0

    @property
    def images_per_computed_s(self) -> float:
        """What the computation alone would reach; 0 where nothing was computed."""
        return self.num_images / self.computed_s if self.computed_s else 0.0

    def line(self) -> dict[str, float]:
        """As `metrics.jsonl` has it."""
        return {"images_per_s": self.images_per_s, "data_wait_fraction": self.wait_fraction}


class StepClock:
    """Tells waiting for data from computing."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """Start, with the loader being waited for; now gives seconds."""
        self._now = now
        self._begin = self._start = self._mark = now()
        self._current, self._read = Interval(), Interval()

    def waits(self) -> None:
        """From here on the loader is waited for."""
        self._mark = self._now()

    def waited(self) -> None:
        """Data have come, and computing begins."""
        self._current += Interval(waited_s=self._lap())

    def stepped(self, num_images: int) -> None:
        """A step has ended."""
        self._current += Interval(computed_s=self._lap(), num_images=num_images)

    def read(self) -> Interval:
        """What has passed since the last reading."""
        now = self._now()
        interval = self._current + Interval(seconds=now - self._start)
        self._start, self._current, self._read = now, Interval(), self._read + interval
        return interval

    def leave_out(self) -> None:
        """Count what has passed since the last reading to no interval, but to the whole."""
        self._start = self._now()

    def whole(self) -> Interval:
        """All since the clock was made."""
        return Interval(self._now() - self._begin, *_parts(self._read + self._current))

    def _lap(self) -> float:
        now = self._now()
        lap, self._mark = now - self._mark, now
        return lap


def _parts(interval: Interval) -> tuple[float, float, int]:
    return interval.waited_s, interval.computed_s, interval.num_images
