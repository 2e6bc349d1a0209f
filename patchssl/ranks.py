"""Which of several processes this is, and the little that they tell each other; alone, nothing happens."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from patchssl.errors import PatchsslError

Value = TypeVar("Value")

# Torchrun ends the others when one fails, so that waiting needs no limit of its own: one may score for hours.
_TIMEOUT = timedelta(days=30)
_POLL_S = 0.02
_LET_GO_S = 0.1


class FailedElsewhereError(PatchsslError):
    """Another process failed, and says itself why."""


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, until the block ends; alone, do nothing.

    Only short messages travel, from memory to memory over gloo; what is large goes through the disk.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or is_joined():
        yield
        return
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        # A message counts as passed on before gloo's thread has let go of it. Were the group's last reference that one,
        # the thread would have to wait for its own end, and the process would abort.
        time.sleep(_LET_GO_S)
        dist.destroy_process_group()


def is_joined() -> bool:
    """Whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process; 0 alone."""
    return dist.get_rank() if is_joined() else 0


def world_size() -> int:
    """How many processes there are; 1 alone."""
    return dist.get_world_size() if is_joined() else 1


def is_main() -> bool:
    """Whether this is the process that evaluates, prints and writes results."""
    return rank() == 0


def wait_for_all() -> None:
    """Return when every process has come here.

    Raises:
        FailedElsewhereError: one of them ended instead.
    """
    if world_size() == 1:
        return
    try:
        work = dist.all_reduce(torch.zeros(1), async_op=True)
        # Asked again and again, since signals reach Python only between its own steps.
        while not work.is_completed():
            time.sleep(_POLL_S)
        work.wait()
    except RuntimeError as error:
        raise FailedElsewhereError(f"another process ended before its part was done ({error}); start again") from None


def gather(value: Value) -> list[Value]:
    """The values of all processes, by rank, for everyone."""
    if world_size() == 1:
        return [value]
    wait_for_all()
    values: list[Value | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def from_main(value: Value) -> Value:
    """The value of rank 0, for everyone."""
    if world_size() == 1:
        return value
    wait_for_all()
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def fail_together(error: PatchsslError | None) -> None:
    """End everyone's work where anyone's failed, so that nobody waits for what does not come.

    Args:
        error: what happened here, or None.

    Raises:
        PatchsslError: the error, where it happened.
        FailedElsewhereError: it happened in another process.
    """
    failed = [index for index, is_bad in enumerate(gather(error is not None)) if is_bad]
    if error is not None:
        raise error
    if failed:
        raise FailedElsewhereError(f"process {failed[0]} of {world_size()} failed and says why")
