"""What surrounds an evaluation: SIGTERM, and the processes of torchrun."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import click


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt it is no error, and nobody but the command line catches it."""


@contextmanager
def evaluation_process() -> Iterator[None]:
    """Surround an evaluation, as a block or as a decorator of the command.

    SIGTERM raises Terminated inside, which ends the command with exit code 0. Under torchrun the process joins the
    others; all but the one that reports are silent, and when another one fails they end without a word of their own.
    """
    with ExitStack() as stack:
        stack.enter_context(_sigterm())
        if not runs_alone():
            stack.enter_context(_among_others())
        yield


def runs_alone() -> bool:
    """Whether torchrun has started no other process beside this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def is_reporting() -> bool:
    """Whether this process evaluates, prints and records; the others have only computed features for it."""
    if runs_alone():
        return True
    from patchssl.ranks import is_main

    return is_main()


@contextmanager
def _sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may ask for signals
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Terminated:
        raise click.exceptions.Exit(0) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _among_others() -> Iterator[None]:
    from patchssl import ranks

    with ranks.process_group():
        if not ranks.is_main():
            logging.disable(logging.WARNING)
        try:
            yield
        except ranks.FailedElsewhereError:
            if ranks.is_main():
                raise
            raise click.exceptions.Exit(1) from None
        finally:
            logging.disable(logging.NOTSET)
