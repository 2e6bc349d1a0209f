"""When the loader holds a training up, and what to do about it."""

import math
from collections import deque
from dataclasses import dataclass

from patchssl.config import Config
from patchssl.environment import usable_cores
from patchssl.launch import Launch
from patchssl.step_clock import Interval
from patchssl.time_report import describe_work

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
        has_cache: whether decoded images are kept.
        has_gpu: whether a GPU trains.
    """

    num_workers: int
    num_cores: int
    global_px: int
    num_local: int
    has_cache: bool = False
    has_gpu: bool = False

    @classmethod
    def of(cls, config: Config, *, num_workers: int, device: str, launch: Launch | None) -> "Loading":
        """In this process; launch tells of those that share the cores of its host with it."""
        views, has_cache = config.views, config.data.cache_images is not None
        num_cores = max(1, usable_cores() // (launch.local_size if launch else 1))
        return cls(num_workers, num_cores, views.global_size, views.num_local, has_cache, has_gpu=device == "cuda")


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
    """That the loader holds the training up, with the numbers, and what to try against what it works at most."""
    processes = "the main process alone makes" if not loading.num_workers else f"{_processes(loading.num_workers)} make"
    most = max(window.loader, key=lambda name: window.loader[name], default="other")
    *first, last = _advice(most, window, loading)
    work = describe_work(window.loader)
    mostly = f"; most of this work is {most} ({work})" if most != "other" and work else ""
    return (
        f"the loader holds the training up: of the last {window.seconds:.0f} s, {window.wait_fraction:.0%} went into "
        f"waiting for data; {processes} {window.images_per_s:.1f} images/s on {loading.num_cores} usable cores, the "
        f"computation alone would reach {window.images_per_computed_s:.1f}{mostly}. Try {', '.join(first)}, or {last}"
    )


def _advice(most: str, window: Interval, loading: Loading) -> list[str]:
    """Two things to try or more, against a stage of making batches; the one that promises most first."""
    wanted = wanted_workers(window, loading)
    more = [f"--workers {wanted}"] if wanted > loading.num_workers else []
    cores = more or ["a machine with more cores, since more processes would only share these"]
    cache = [] if loading.has_cache else ["--cache-images DIR"]
    smaller = [f"images stored smaller where they are much larger than a view of {loading.global_px} px"]
    fewer = [f"fewer local views (views.num_local is {loading.num_local})"] if loading.num_local else []
    if most == "reading":
        disk = "a faster disk for the images that are kept" if loading.has_cache else "a faster disk"
        return [*cache, "tar or parquet shards in place of single files", disk, *more]
    if most == "decoding":
        return [*cores, *cache, *smaller]
    if most == "augmenting":
        by_gpu = ["--set data.division=images, with which the GPU cuts the views out"] if loading.has_gpu else []
        return [*by_gpu, *cores, *(fewer or smaller)]
    return [*cores, *smaller, *fewer]


def _processes(num: int) -> str:
    return "1 loader process" if num == 1 else f"{num} loader processes"
