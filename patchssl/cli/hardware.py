"""On what a training runs: what the configuration leaves to `auto`, settled for all processes alike."""

from typing import TYPE_CHECKING

from patchssl.cli.options import resolve_device, usable_workers
from patchssl.launch import launched

if TYPE_CHECKING:
    from patchssl.config import Config
    from patchssl.resumable import Hardware


def hardware_of(config: "Config") -> "Hardware":
    """Device, precision and number of processes; every process has to ask.

    Raises:
        ConfigError: the device is not there.
    """
    from patchssl.pretrain import default_precision
    from patchssl.ranks import from_main, world_size
    from patchssl.resumable import Hardware

    device, wished = resolve_device(config.train.device), config.train.precision
    precision = from_main(default_precision(device) if wished == "auto" else str(wished))
    return Hardware(device, precision, world_size())


def workers_of(config: "Config", hardware: "Hardware") -> int:
    """Loader processes of each process."""
    if config.data.workers is not None:
        return config.data.workers
    # On the CPU alone, training fills the cores; a single process that reads ahead is what it can spare.
    return 1 if hardware.device == "cpu" else usable_workers(shared=True)


def num_local_processes() -> int:
    """How many processes share this machine."""
    started = launched()
    return 1 if started is None else started.local_size
