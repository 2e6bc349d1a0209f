"""A function of whole numbers, computed ahead by processes and handed on in order."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from torch.utils.data import Dataset

from patchssl.data.made_ahead import made_ahead
from patchssl.errors import PatchsslError

T = TypeVar("T")


def in_order(compute: Callable[[int], T], num: int, *, workers: int) -> Iterator[T]:
    """Yield compute(0) to compute(num - 1).

    Args:
        compute: picklable; its results as well. It may be called for numbers whose results nobody takes.
        num: how many.
        workers: processes; 0 computes in this one, when a result is asked for.

    Raises:
        PatchsslError, OSError: compute raised it; LoaderError where a process died.
    """
    for result in made_ahead(_Results(compute, num), range(num), workers=min(workers, num)):
        if isinstance(result, _Raised):
            raise result.error
        yield result


class _Raised:
    """Carries an error as a value: raised in a worker, it would reach the user with the worker's traceback inside."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Results(Dataset[Any], Generic[T]):
    def __init__(self, compute: Callable[[int], T], num: int) -> None:
        self.compute, self.num = compute, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, number: int) -> T | _Raised:
        try:
            return self.compute(number)
        except (PatchsslError, OSError) as error:
            return _Raised(error)
