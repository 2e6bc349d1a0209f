"""The options that many commands share, one decorator each, so that a command takes only what it uses.

Where `default` is None the command decides; its help then says that the configuration does.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from patchssl.environment import usable_cores
from patchssl.errors import ConfigError
from patchssl.launch import launched
from patchssl.user_cache import CACHE_VARIABLE, user_cache

Function = TypeVar("Function", bound=Callable[..., Any])
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
FORMATS = ("table", "json", "csv", "markdown")

_CONFIGURED = "from the configuration"
_MOST_WORKERS = 8
_LARGEST_SEED = 2**32 - 1  # scikit-learn takes no larger ones


class Decorator(Protocol):
    """Adds an option to a command's function."""

    def __call__(self, function: Function, /) -> Function:
        """Return the function, which now takes the option."""
        ...


def device_option(*, default: str | None = "auto") -> Decorator:
    """`--device`, passed as `device: str`; `resolve_device` turns auto into a device."""
    return click.option(
        "--device",
        type=click.Choice(DEVICES),
        default=default,
        show_default=True if default else _CONFIGURED,
        help="Where to compute; auto takes cuda if there is one, then mps, then cpu.",
    )


def precision_option(*, default: str | None = "auto") -> Decorator:
    """`--precision`, passed as `precision: str`."""
    return click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default=default,
        show_default=True if default else _CONFIGURED,
        help="Number format of the forward pass; auto takes bf16 where the device is fast at it, else fp32.",
    )


def workers_option(*, configured: bool = False) -> Decorator:
    """`--workers`, passed as `workers: int`; or, where a configuration decides, as `workers: int | None`."""
    return click.option(
        "--workers",
        type=click.IntRange(min=0),
        metavar="N",
        default=None if configured else usable_workers,
        show_default=_CONFIGURED if configured else f"the usable cores, at most {_MOST_WORKERS}",
        help="Processes that read images; 0 reads them in the main process.",
    )


def batch_size_option(*, default: int | None) -> Decorator:
    """`--batch-size`, passed as `batch_size: int`."""
    return click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        metavar="N",
        default=default,
        show_default=True if default else _CONFIGURED,
        help="Images that are computed at once; the smaller, the less memory.",
    )


def cache_options() -> tuple[Decorator, Decorator]:
    """`--cache` and `--no-cache`, passed as `cache: Path` and `no_cache: bool`."""
    return (
        click.option(
            "--cache",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            default=user_cache,
            show_default=f"${CACHE_VARIABLE}, else patchssl in the user's cache folder",
            help="Folder in which features are kept: they are computed once, and go on where they were interrupted.",
        ),
        click.option("--no-cache", is_flag=True, help="Read no features that are kept, and keep none."),
    )


def seed_option(*, default: int | None = 0) -> Decorator:
    """`--seed`, passed as `seed: int`."""
    return click.option(
        "--seed",
        type=click.IntRange(min=0, max=_LARGEST_SEED),
        metavar="N",
        default=default,
        show_default=_CONFIGURED if default is None else True,
        help="Everything random follows from it.",
    )


def results_option() -> Decorator:
    """`--results`, passed as `results: Path`."""
    return click.option(
        "--results",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        default=Path("results/rows"),
        show_default=True,
        help="Folder to whose files the result row is appended.",
    )


def no_record_option() -> Decorator:
    """`--no-record`, passed as `no_record: bool`."""
    return click.option("--no-record", is_flag=True, help="Print the result, write no row.")


def format_option() -> Decorator:
    """`--format`, passed as `output_format: str`."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="How results are printed; with json stdout is one JSON document and nothing else.",
    )


def quiet_option() -> Decorator:
    """`--quiet`, passed as `quiet: bool`."""
    return click.option("--quiet", "-q", is_flag=True, help="No progress; only warnings, errors and results.")


def usable_workers(*, shared: bool = False) -> int:
    """The cores that this process may use, at most 8.

    Args:
        shared: those of a host are shared among its processes, of torchrun or srun.
    """
    started = launched() if shared else None
    return min(max(1, usable_cores() // (started.local_size if started else 1)), _MOST_WORKERS)


def resolve_device(name: str) -> str:
    """Turn `--device` into a device of torch.

    Args:
        name: one of `DEVICES`.

    Returns:
        cpu, cuda or mps; for auto the first present of cuda, mps, cpu.

    Raises:
        ConfigError: the device is not present, or there is none of that name.
    """
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, is_present in present.items() if is_present)
    if name not in present:
        raise ConfigError(f"--device {name!r} is not known; allowed: {', '.join(DEVICES)}")
    if not present[name]:
        allowed = ", ".join(["auto", *(device for device, is_present in present.items() if is_present)])
        raise ConfigError(f"--device {name}: torch {torch.__version__} finds no such device here; use one of {allowed}")
    return name


def own_device(device: str) -> str:
    """The device of this process: of those that torchrun or srun starts on a host, each takes a GPU of its own.

    Args:
        device: cpu, cuda or mps.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    started = launched()
    if device != "cuda" or (started is None and "LOCAL_RANK" not in os.environ):
        return device
    import torch

    local_rank = started.local_rank if started is not None else int(os.environ["LOCAL_RANK"])
    num = torch.cuda.device_count()
    if num == 1 and started is not None and started.sees_own_gpu:
        return "cuda:0"
    if local_rank >= num:
        raise ConfigError(
            f"process {local_rank} of this host finds {num} GPUs; start at most as many processes as there are GPUs "
            "(torchrun --nproc-per-node, srun --ntasks-per-node)"
        )
    return f"cuda:{local_rank}"
