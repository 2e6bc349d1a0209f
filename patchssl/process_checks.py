"""Whether so many processes can train together, and are about to do the same."""

from typing import Literal

from patchssl import ranks
from patchssl.config import Config
from patchssl.data.images import ImageSource
from patchssl.errors import ConfigError, DataError
from patchssl.names import names_sha256

Way = Literal["alone", "ddp", "fsdp"]


def check_processes(config: Config, device: str, num_processes: int) -> Way:
    """How so many processes train together.

    Args:
        config: of the run.
        device: cpu, cuda or mps, with or without a number.
        num_processes: 1 alone.

    Raises:
        ConfigError: they cannot: the batch cannot be shared out evenly, or device or strategy is not for so many.
    """
    train = config.train
    if num_processes > 1 and device.startswith("mps"):
        raise ConfigError(f"{num_processes} processes cannot share the one device mps; start one, or use --device cpu")
    if num_processes == 1 and train.strategy == "fsdp":
        raise ConfigError(
            "train.strategy is fsdp, which shares networks out among processes, and there is one; start several, for "
            "instance by torchrun --nproc-per-node 2 -m patchssl pretrain ..., or take train.strategy auto"
        )
    _check_batch(config, num_processes)
    if num_processes == 1:
        return "alone"
    return "fsdp" if train.strategy == "fsdp" else "ddp"


def _check_batch(config: Config, num_processes: int) -> None:
    size, num_parts = config.train.batch_size, config.train.accumulate
    unit = num_processes * num_parts
    if size % unit:
        below, above = size // unit * unit, (size // unit + 1) * unit
        near = f"{below} or {above}" if below else str(above)
        raise ConfigError(
            f"train.batch_size is {size} and cannot be shared out evenly: {num_processes} process"
            f"{'es' if num_processes > 1 else ''} times train.accumulate {num_parts} need a multiple of {unit}; take "
            f"--batch-size {near}"
        )
    if config.loss.koleo_weight and size // num_parts < 2:
        raise ConfigError(
            f"loss.koleo_weight is {config.loss.koleo_weight}, and a batch of {size} in {num_parts} parts "
            "(train.accumulate) leaves one image in a part, with no other to be spread apart from; take "
            f"train.accumulate of at most {size // 2}"
        )


def check_alike(config: Config, source: ImageSource, device: str) -> None:
    """Make sure that all processes are about to do the same.

    Args:
        config: of the run.
        source: the images.
        device: cpu, cuda or mps.

    Raises:
        DataError, ConfigError: in the main process, some see other images, settings or devices.
        FailedElsewhereError: the same, in the others.
    """
    told = ranks.gather((f"{len(source)} images", names_sha256(source.ids), config.model_dump_json(), device))
    with ranks.failing_alike():
        for other, (num, names, settings, kind) in enumerate(told):
            if (num, names) != told[0][:2]:
                raise DataError(
                    f"{source.location} is not the same for all processes: process 0 finds {told[0][0]}, process "
                    f"{other} {num} {'' if num != told[0][0] else 'of other names'}; every host has to see the same"
                )
            if (settings, kind) != told[0][2:]:
                raise ConfigError(
                    f"process {other} has another configuration or device ({kind}) than process 0 ({told[0][3]}); "
                    "start all of them with the same options, on hosts that are alike"
                )
