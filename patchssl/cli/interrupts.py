"""Ctrl-C and SIGTERM as a wish to stop after the current step."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class StopWish:
    """Remembers which signal asked to stop."""

    def __init__(self) -> None:
        """Nothing has been asked for yet."""
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; a second one from the keyboard interrupts at once."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        logger.warning("%s: saving after this step, then stopping", signal.Signals(number).name)


@contextmanager
def stop_by_signal() -> Iterator[StopWish]:
    """Catch SIGINT and SIGTERM inside the block.

    After SIGINT the block ends with KeyboardInterrupt, so that the exit code tells; after SIGTERM quietly.
    """
    wish = StopWish()
    before = {number: signal.signal(number, wish.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if wish.signal == signal.SIGINT:
        raise KeyboardInterrupt
