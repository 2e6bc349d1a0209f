"""What surrounds commands that several processes may share: SIGTERM, and the processes of torchrun and srun."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import FrameType

import click

from patchssl.launch import launched

INTERRUPTED = 130

# A step takes seconds, and saving minutes: who is silent for longer hangs.
_LONGEST_SILENCE = timedelta(minutes=30)


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt it is no error, and nobody but the command line catches it."""


@contextmanager
def evaluation_process() -> Iterator[None]:
    """Surround an evaluation, as a block or as a decorator of the command.

    SIGTERM raises Terminated inside, which ends the command with exit code 0. Under torchrun or srun the process joins
    the others; all but the one that reports are silent, and when another one fails they end with it.
    """
    with ExitStack() as stack:
        stack.enter_context(_sigterm())
        if not runs_alone():
            stack.enter_context(_among_others(timeout=None, with_gpus=False))
        yield


@contextmanager
def training_process() -> Iterator[None]:
    """Surround a training, as a block or as a decorator of the command; signals are left to it.

    Under torchrun or srun the process joins the others, as an evaluation does, and tensors travel between GPUs.
    """
    with ExitStack() as stack:
        if not runs_alone():
            stack.enter_context(_among_others(timeout=_LONGEST_SILENCE, with_gpus=True))
        yield


def runs_alone() -> bool:
    """Whether torchrun or srun has started no other process beside this one."""
    return launched() is None


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
def _among_others(*, timeout: timedelta | None, with_gpus: bool) -> Iterator[None]:
    from patchssl import ranks

    limit = {} if timeout is None else {"timeout": timeout}
    with ranks.process_group(**limit, with_gpus=with_gpus):
        if not ranks.is_main():
            logging.disable(logging.WARNING)
        try:
            yield
        except ranks.LostContactError:
            raise  # by everyone, since nobody knows who is left to say it
        except ranks.FailedElsewhereError:
            if ranks.is_main():
                raise
            raise click.exceptions.Exit(1) from None
        except KeyboardInterrupt:
            if ranks.is_main():
                raise
            raise click.exceptions.Exit(INTERRUPTED) from None
        finally:
            logging.disable(logging.NOTSET)
