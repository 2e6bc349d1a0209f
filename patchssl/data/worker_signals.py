"""What signals do to a process that reads images, and how it ends with the main process."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType

# How often a worker looks whether the main process is there.
_LOOK_EVERY_S = 1.0


@contextmanager
def signals_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait: a worker is born into this, and so not ended before it leaves them to its parent."""
    if not hasattr(signal, "sigtimedwait"):
        yield  # there workers have no other way to learn of a SIGTERM that is meant for them
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_main_process(worker: int) -> None:
    """Keep a worker alive when Ctrl-C, or SIGTERM from a scheduler, reaches the whole group of processes.

    The main process then ends its step, saves, and lets the workers end through their queue. SIGTERM from the main
    process itself ends a worker: so Python ends those that an error left behind, and waits for them before it exits.
    When the main process is killed, a worker ends as well, whatever it is doing. A batch that nobody fetches any more
    is no news, and of a crash the main process tells.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = partial(tell_unless_broken_off, sys.excepthook)
    for name in ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGCHLD"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    # Not on every system; where it is missing, SIGTERM from anyone ends a worker.
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def tell_unless_broken_off(
    tell: Callable[[type[BaseException], BaseException, TracebackType | None], object],
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    """Say nothing of a main process that stops while a worker hands it a batch."""
    if not isinstance(error, EOFError | ConnectionError):
        tell(kind, error, trace)


def _end_with_the_main_process() -> None:
    main = multiprocessing.parent_process()
    assert main is not None
    while os.getppid() == main.pid:
        received = signal.sigtimedwait({signal.SIGTERM}, _LOOK_EVERY_S)
        if received is not None and received.si_pid == main.pid:
            break
    os._exit(0)
