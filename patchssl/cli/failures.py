"""What the command line says when something fails: one line with what came, what is allowed and what to do."""

from collections.abc import Iterator

from patchssl.cli.one_line import one_line
from patchssl.errors import PatchsslError, UnforeseenError

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_TORCHVISION_BROKEN = "operator torchvision::nms does not exist"


def describe(error: BaseException) -> str:
    """The line for an exception that reached the command line, without the leading `Error: `."""
    message = one_line(str(error)) if isinstance(error, PatchsslError) else " ".join(str(error).split())
    if _is_broken_torchvision(error):
        return (
            f"torch and torchvision come from different builds ({_TORCHVISION_BROKEN}), for instance a CPU-only "
            "torch beside a CUDA torchvision; install both again in one command from one index: "
            "pip install --force-reinstall torch torchvision"
        )
    if is_out_of_memory(error):
        return (
            f"out of memory ({message or type(error).__name__}); take a smaller --batch-size, fewer --workers, "
            "smaller images or a smaller model"
        )
    return message if isinstance(error, PatchsslError) else f"{type(error).__name__}: {message}"


def is_unforeseen(error: BaseException) -> bool:
    """Whether nothing is known about an exception, so that only its traceback can tell more."""
    if isinstance(error, UnforeseenError):
        return True
    return not (isinstance(error, PatchsslError) or _is_broken_torchvision(error) or is_out_of_memory(error))


def _is_broken_torchvision(error: BaseException) -> bool:
    return any(_TORCHVISION_BROKEN in str(link) for link in _chain(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no memory left, on the host or a device."""
    # Torch's own class cannot be named here without importing torch; on CPU and MPS it is a plain RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, what it was raised from, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
