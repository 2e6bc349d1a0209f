"""How many images an evaluation has seen: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def image_progress(what: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yield what is to be called with the number of images done since the last call.

    Args:
        what: the images, for instance `training images`.
        total: how many there are.
        quiet: show nothing.
    """
    if quiet:
        yield lambda num: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda num: bar.advance(task, num)
    else:
        yield _lines(what, total)


def _lines(what: str, total: int) -> Callable[[int], None]:
    done, start = 0, time.monotonic()
    last = start

    def show(num: int) -> None:
        nonlocal done, last
        done += num
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES or done == total:
            last = now
            logger.info("%s: %d of %d, %.0f images/s", what, done, total, done / max(now - start, 1e-9))

    return show
