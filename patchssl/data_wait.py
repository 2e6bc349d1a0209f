"""When the loader holds a training up, and what to do about it."""

import math
from collections import deque
from dataclasses import dataclass

from patchssl.config import ViewsConfig
from patchssl.environment import usable_cores
from patchssl.launch import Launch
from patchssl.step_clock import Interval

LEAST_INTERVALS = 3
LEAST_S = 30.0
SHORT, ENOUGH = 0.25, 0.125


@dataclass(frozen=True, slots=True)
class Loading:
    """What data are made with.

    Attributes:
        num_workers: loader processes; 0 where the main process reads.
        num_cores: that this process may use.
        global_px: side of a global view.
        num_local: local views of an image.
    """

    num_workers: int
    num_cores: int
    global_px: int
    num_local: int

    @classmethod
    def of(cls, views: ViewsConfig, *, num_workers: int, launch: Launch | None) -> "Loading":
        """In this process; launch tells of those that share the cores of its host with it."""
        num_cores = max(1, usable_cores() // (launch.local_size if launch else 1))
        return cls(num_workers, num_cores, views.global_size, views.num_local)


class DataWait:
    """Notices that the loader has become the bottleneck.

    Judged are the latest intervals that fill 30 s and are at least three, so that neither a slow batch nor a pause
    counts; the first interval, in which the workers start, never does. More than a quarter of that time spent waiting
    is told once, and again only after it was less than an eighth.
    """

    def __init__(self) -> None:
        """Nothing has been seen."""
        self._latest: deque[Interval] = deque()
        self._is_first, self._is_short = True, False

    def add(self, interval: Interval) -> Interval | None:
        """Take note of the next interval.

        Returns:
            The latest intervals together, if it is now that the loader holds the training up.
        """
        if self._is_first:
            self._is_first = False
            return None
        self._latest.append(interval)
        while len(self._latest) > LEAST_INTERVALS and self._seconds() - self._latest[0].seconds >= LEAST_S:
            self._latest.popleft()
        if len(self._latest) < LEAST_INTERVALS or self._seconds() < LEAST_S:
            return None
        window = sum(self._latest, Interval())
        was_short = self._is_short
        self._is_short = window.wait_fraction > (ENOUGH if was_short else SHORT)
        return window if self._is_short and not was_short else None

    def _seconds(self) -> float:
        return sum(interval.seconds for interval in self._latest)


def wanted_workers(window: Interval, loading: Loading) -> int:
    """How many loader processes would keep pace with the computation; at most as many as there are cores.

    Workers that are waited for work all the time, so that they are too few by the ratio of the two speeds. Where the
    main process reads, the time of reading is known.
    """
    if not window.computed_s:
        return loading.num_cores
    pace = window.seconds / window.computed_s * loading.num_workers
    wanted = math.ceil(pace if loading.num_workers else window.waited_s / window.computed_s)
    return max(1, min(wanted, loading.num_cores))


def describe_wait(window: Interval, loading: Loading) -> str:
    """That the loader holds the training up, with the numbers, and what to try."""
    wanted = wanted_workers(window, loading)
    processes = "the main process alone makes" if not loading.num_workers else f"{_processes(loading.num_workers)} make"
    if wanted > loading.num_workers:
        more = f"--workers {wanted}"
    else:
        more = "a machine with more cores, since more processes would only share these"
    fewer = f", or fewer local views (views.num_local is {loading.num_local})" if loading.num_local else ""
    return (
        f"the loader holds the training up: of the last {window.seconds:.0f} s, {window.wait_fraction:.0%} went into "
        f"waiting for data; {processes} {window.images_per_s:.1f} images/s on {loading.num_cores} usable cores, the "
        f"computation alone would reach {window.images_per_computed_s:.1f}. Try {more}, images stored smaller where "
        f"they are much larger than a view of {loading.global_px} px{fewer}"
    )


def describe_whole(whole: Interval) -> str:
    """What the time of a training went into."""
    return (
        f"{whole.num_images} images in {whole.seconds:.0f} s, {whole.images_per_s:.1f} a second; "
        f"{whole.wait_fraction:.0%} of the time waiting for data, "
        f"{whole.computed_s / max(whole.seconds, 1e-9):.0%} in steps"
    )


def _processes(num: int) -> str:
    return "1 loader process" if num == 1 else f"{num} loader processes"
