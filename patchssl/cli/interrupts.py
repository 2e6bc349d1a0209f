"""Ctrl-C and SIGTERM as a wish to stop after the current step, or at once where nothing is lost by it."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TypeVar

import click

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Stopped(BaseException):
    """A signal came where nothing is lost by stopping at once. Like KeyboardInterrupt it is no error."""


class StopWish:
    """Remembers which signal asked to stop."""

    def __init__(self) -> None:
        """Nothing has been asked for yet."""
        self.signal: int | None = None
        self._process = os.getpid()
        self._is_interruptible = False
        self._told = "saving after this step, then stopping"

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    @contextmanager
    def at_once(self, told: str = "stopping before the first step") -> Iterator[None]:
        """Raise Stopped when a signal comes inside the block, or has come before it.

        Args:
            told: what the log says then.
        """
        before, self._told = self._told, told
        self._is_interruptible = True
        try:
            if self.signal is not None:
                raise Stopped
            yield
        finally:
            self._is_interruptible, self._told = False, before

    def unless_stopped(self, call: Callable[[], Result]) -> Result | None:
        """What a call returns, or None as soon as a signal comes or if one has come before."""
        try:
            with self.at_once(self._told):
                return call()
        except Stopped:
            return None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; a second one from the keyboard interrupts at once."""
        if os.getpid() != self._process:
            return  # a process forked a moment ago, which the signal was not meant for
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = number
        logger.warning("%s: %s", signal.Signals(number).name, self._told)
        if self._is_interruptible:
            raise Stopped


@contextmanager
def stop_by_signal() -> Iterator[StopWish]:
    """Catch SIGINT and SIGTERM inside the block.

    After SIGINT the block ends with KeyboardInterrupt, so that the exit code tells; after SIGTERM quietly, or, where
    something was broken off by it, with exit code 0.
    """
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish  # only the main thread may ask for signals
        return
    before = {number: signal.signal(number, wish.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    hook, sys.unraisablehook = sys.unraisablehook, partial(_tell_unraisable, sys.unraisablehook)
    try:
        yield wish
    except Stopped:
        if wish.signal == signal.SIGTERM:
            raise click.exceptions.Exit(0) from None
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
    if wish.signal == signal.SIGINT:
        raise KeyboardInterrupt


def _tell_unraisable(tell: Callable[["sys.UnraisableHookArgs"], object], found: "sys.UnraisableHookArgs") -> None:
    """Say nothing of a Stopped that came where Python cannot pass it on; the wish is known all the same."""
    if not isinstance(found.exc_value, Stopped):
        tell(found)
