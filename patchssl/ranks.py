"""Which of several processes this is, and the little that they tell each other; alone, nothing happens."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from patchssl.errors import ConfigError, PatchsslError
from patchssl.launch import Launch, launched

Value = TypeVar("Value")

# Torchrun ends the others when one fails, so that waiting needs no limit of its own: one may score for hours.
_FOR_DAYS = timedelta(days=30)
_POLL_S = 0.02
_LET_GO_S = 0.1
# Of what gloo and NCCL say at length, as plain RuntimeErrors, when another process has ended or does not answer.
_LOST = re.compile(r"connection (closed|reset|refused)( by peer)?|broken pipe|timed out( waiting \w+)?", re.IGNORECASE)


class FailedElsewhereError(PatchsslError):
    """Another process failed, and says itself why."""


class LostContactError(FailedElsewhereError):
    """Another process ended or stopped answering, perhaps without a word.

    Attributes:
        reason: what was seen of that.
    """

    def __init__(self, message: str, reason: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.reason = reason


@contextmanager
def process_group(*, timeout: timedelta = _FOR_DAYS, with_gpus: bool = False) -> Iterator[None]:
    """Join the processes that torchrun or srun started, until the block ends; alone, do nothing.

    What is in memory travels over gloo, tensors on GPUs over NCCL; what evaluations have that is large goes through the
    disk.

    Args:
        timeout: how long a process may keep the others waiting.
        with_gpus: tensors on GPUs are going to travel, if there are any.

    Raises:
        ConfigError: the environment says who the others are, but not fully; or they cannot be reached.
    """
    started = launched()
    if started is None or is_joined():
        yield
        return
    _join(started, timeout, with_gpus=with_gpus)
    try:
        yield
    finally:
        # A message counts as passed on before gloo's thread has let go of it. Were the group's last reference that one,
        # the thread would have to wait for its own end, and the process would abort.
        time.sleep(_LET_GO_S)
        dist.destroy_process_group()


def _join(started: Launch, timeout: timedelta, *, with_gpus: bool) -> None:
    # Where torch looks for them; torchrun has set them already.
    os.environ |= {"MASTER_ADDR": started.address, "MASTER_PORT": str(started.port)}
    nccl = with_gpus and torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if nccl else "gloo", rank=started.rank, world_size=started.world_size, timeout=timeout
        )
    except RuntimeError as error:
        raise ConfigError(
            f"process {started.rank} of {started.world_size} cannot join the others at {started.address}:"
            f"{started.port}: {_first_line(error)}; start all of them, see that hosts reach each other (the variable "
            "GLOO_SOCKET_IFNAME names the network interface), and take another MASTER_PORT if that one is in use"
        ) from None


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
        LostContactError: one of them ended instead.
    """
    if world_size() == 1:
        return
    with _contact():
        work = dist.all_reduce(torch.zeros(1), async_op=True)
        # Asked again and again, since signals reach Python only between its own steps.
        while not work.is_completed():
            time.sleep(_POLL_S)
        work.wait()


def gather(value: Value) -> list[Value]:
    """The values of all processes, by rank, for everyone."""
    if world_size() == 1:
        return [value]
    wait_for_all()
    values: list[Value | None] = [None] * world_size()
    with _contact():
        dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def from_main(value: Value) -> Value:
    """The value of rank 0, for everyone."""
    if world_size() == 1:
        return value
    wait_for_all()
    values = [value]
    with _contact():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def fail_together(error: PatchsslError | None) -> None:
    """End everyone's work where anyone's failed, so that nobody waits for what does not come.

    Args:
        error: what happened here, or None.

    Raises:
        PatchsslError: the error, where it happened; where several processes have the same to say, in the first.
        FailedElsewhereError: it happened in another process.
    """
    told = gather(None if error is None else str(error))
    failed = [index for index, words in enumerate(told) if words is not None]
    if error is not None and told.index(str(error)) == rank():
        raise error
    if failed:
        raise FailedElsewhereError(f"process {failed[0]} of {world_size()} failed and says why")


@contextmanager
def failing_together() -> Iterator[None]:
    """A block that all processes go through, and that all of them leave by an error if one of them does.

    Raises:
        PatchsslError, FailedElsewhereError: as in fail_together.
    """
    failure = None
    try:
        yield
    except PatchsslError as error:
        failure = error
    fail_together(failure)


@contextmanager
def failing_alike() -> Iterator[None]:
    """A block whose errors follow from what all processes know, so that all have the same; the main one says it.

    Raises:
        PatchsslError: in the main process.
        FailedElsewhereError: in the others.
    """
    try:
        yield
    except PatchsslError as error:
        if is_main():
            raise
        raise FailedElsewhereError(f"process 0 of {world_size()} says it: {error}") from None


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error, of ours or of gloo or NCCL, says that another process ended or does not answer."""
    if world_size() == 1 or not isinstance(error, RuntimeError):
        return isinstance(error, LostContactError)
    words = str(error).lower()
    return isinstance(error, dist.DistError) or any(sign in words for sign in ("gloo", "nccl")) or bool(_seen(error))


def lost_contact(error: BaseException, advice: str) -> LostContactError:
    """An error of is_lost_contact in our words, for a user who is to do this."""
    reason = error.reason if isinstance(error, LostContactError) else _seen(error) or _first_line(error)
    return LostContactError(f"process {rank()} of {world_size()} lost another one ({reason}); {advice}", reason)


def summed(tensor: Tensor) -> Tensor:
    """The sum of the processes' tensors, for everyone; without gradients."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def any_of(happened: bool) -> bool:
    """Whether something happened in any process."""
    return happened if world_size() == 1 else bool(summed(torch.tensor(int(happened))))


def averaged(tensor: Tensor) -> Tensor:
    """The mean of the processes' tensors, for everyone; without gradients."""
    return tensor if world_size() == 1 else summed(tensor) / world_size()


def log_summed_exp(tensor: Tensor) -> Tensor:
    """The logarithm of the sum of the exponentials of the processes' tensors, for everyone; without gradients."""
    if world_size() == 1:
        return tensor
    largest = tensor.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return summed((tensor - largest).exp()).log() + largest


def gathered(tensor: Tensor) -> Tensor:
    """The rows of all processes, by rank, for everyone.

    All of them have to compute the same from it. What each computes has a gradient in the rows of the others, too, and
    these are equal: the gradient of the sum over processes is that of one of them, times their number.

    Args:
        tensor: (M, ...) of equal shape everywhere.

    Returns:
        (world_size * M, ...).
    """
    if world_size() == 1:
        return tensor
    result: Tensor = _Gathered.apply(tensor)
    return result


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        ctx.num_rows = len(tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        start = rank() * ctx.num_rows
        return gradient[start : start + ctx.num_rows] * world_size()


@contextmanager
def _contact() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise lost_contact(error, "start again, with --resume if it is a training") from None


def _seen(error: BaseException) -> str:
    found = _LOST.search(str(error))
    return found[0] if found else ""


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
