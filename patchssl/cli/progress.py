"""How far a training has come: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchssl.pretrain import Progress

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 15.0


class Speed:
    """Images per second over the recent past, and what is left at that speed."""

    def __init__(self, window_s: float = 30.0) -> None:
        """Average over about window_s seconds."""
        self._window_s = window_s
        self._marks: list[tuple[float, int]] = []

    def __call__(self, progress: "Progress") -> tuple[float, float]:
        """Images per second and seconds left; zeros before there are two readings."""
        now = time.monotonic()
        self._marks.append((now, progress.num_images))
        while len(self._marks) > 2 and now - self._marks[1][0] > self._window_s:
            self._marks.pop(0)
        then, images = self._marks[0]
        seconds = now - then
        if seconds <= 0:
            return 0.0, 0.0
        rate = (progress.num_images - images) / seconds
        left = (progress.num_steps - progress.step) * progress.num_images / progress.step
        return rate, left / rate


@contextmanager
def training_progress(*, quiet: bool) -> Iterator[Callable[["Progress"], None]]:
    """Yield what is to be called after every step."""
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines()


def _lines() -> Callable[["Progress"], None]:
    speed, last = Speed(), time.monotonic() - _SECONDS_BETWEEN_LINES

    def show(progress: "Progress") -> None:
        nonlocal last
        rate, left = speed(progress)
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES or progress.step == progress.num_steps:
            last = time.monotonic()
            logger.info(
                "step %d/%d  loss %.4f  %.0f images/s  %s left",
                progress.step,
                progress.num_steps,
                progress.loss,
                rate,
                duration(left),
            )

    return show


@contextmanager
def _bar() -> Iterator[Callable[["Progress"], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    speed = Speed()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting")

        def show(progress: "Progress") -> None:
            rate, left = speed(progress)
            text = f"loss {progress.loss:.4f}  {rate:.0f} images/s  {duration(left)} left"
            bar.update(task, completed=progress.step, total=progress.num_steps, description=text)

        yield show


def duration(seconds: float) -> str:
    """Seconds in words, as `1 h 05 min`, `3 min 20 s` or `7 s`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
