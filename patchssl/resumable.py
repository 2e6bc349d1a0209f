"""Under which configurations and with which data a run may go on, and what a change of them means."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from patchssl.config import Config
from patchssl.errors import CheckpointError
from patchssl.names import names_sha256

logger = logging.getLogger(__name__)


class Effect(Enum):
    """What changing a setting in the middle of a run does to its result."""

    RESULT = "another result"
    ROUNDING = "other rounding"
    LENGTH = "another length"
    NONE = "none"


_EFFECTS: Mapping[str, Mapping[Effect, str]] = {
    "data": {
        Effect.RESULT: "exif_orientation cache_side shuffle_buffer image_column",
        Effect.ROUNDING: "division",
        Effect.NONE: "workers max_bad_fraction cache_images",
    },
    "views": {
        Effect.RESULT: "global_size local_size num_global num_local global_scale local_scale ratio flip_probability "
        "shared_geometry"
    },
    "photometric": {
        Effect.RESULT: "brightness contrast saturation hue jitter_probability greyscale_probability blur_probability "
        "blur_sigma solarise_probability solarise_threshold patch_probability teacher_patch_probability cell_size"
    },
    "model": {
        Effect.RESULT: "arch patch_size width depth num_heads pooling drop_path head_hidden head_bottleneck "
        "cls_prototypes patch_prototypes shared_head norm_last_layer init init_heads",
        Effect.NONE: "crop_fraction",
    },
    "loss": {
        Effect.RESULT: "patch_weight patch_weight_start patch_weight_warmup_fraction koleo_weight average matching "
        "center sinkhorn_iterations center_momentum student_temperature teacher_temperature teacher_temperature_start "
        "teacher_temperature_warmup_fraction",
        Effect.ROUNDING: "chunk_mib",
    },
    "train": {
        Effect.RESULT: "batch_size learning_rate final_learning_rate warmup_fraction weight_decay final_weight_decay "
        "ema_momentum final_ema_momentum clip_gradient clip_mode freeze_last_layer_fraction seed",
        Effect.LENGTH: "epochs steps",
        Effect.ROUNDING: "accumulate checkpoint_activations strategy device precision",
        Effect.NONE: "checkpoint_every_steps keep_last keep_every max_skipped_steps",
    },
    "log": {
        Effect.NONE: "every_steps tensorboard knn_data knn_every_steps knn_train_images knn_test_images",
    },
}
EFFECTS: Mapping[str, Effect] = {
    f"{section}.{key}": effect
    for section, by_effect in _EFFECTS.items()
    for effect, keys in by_effect.items()
    for key in keys.split()
}

_PROCESSES, _CACHE_SIDE = "the number of processes", "data.cache_side"
_MEANING = {
    Effect.NONE: "",
    Effect.ROUNDING: ": from here on it is rounded otherwise, so that losses are equal to those of a run without this "
    "change no longer to the last bit",
    Effect.LENGTH: ": what has been done stays, the schedules of what is left follow the new length",
}


@dataclass(frozen=True)
class Hardware:
    """How a run is computed, where the configuration may say `auto`.

    Attributes:
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        num_processes: that share a batch.
    """

    device: str
    precision: str
    num_processes: int = 1

    def settings(self) -> dict[str, str | int]:
        """By the names that messages give them."""
        return {"train.device": self.device, "train.precision": self.precision, _PROCESSES: self.num_processes}


@dataclass(frozen=True)
class Change:
    """A setting that is no longer what it was."""

    name: str
    before: Any
    now: Any
    effect: Effect

    def log(self) -> None:
        """Say it, and what it means."""
        level = logging.INFO if self.effect is Effect.NONE else logging.WARNING
        told = f"{self.name} is now {_told(self.now)}, it was {_told(self.before)}{_MEANING[self.effect]}"
        logger.log(level, "%s", told)


def identity(ids: Sequence[str], hardware: Hardware) -> dict[str, Any]:
    """What a checkpoint keeps of data and hardware.

    Args:
        ids: the relative path or name of each image.
        hardware: of the process.
    """
    return {
        "num_images": len(ids),
        "image_names_sha256": names_sha256(ids),
        "hardware": hardware.settings(),
    }


def check_same_data(content: Mapping[str, Any], ids: Sequence[str], path: Path) -> None:
    """Make sure that a run goes on with the images that it began with; their folder may have moved.

    Args:
        content: of a checkpoint of ours.
        ids: the relative path or name of each image.
        path: of the checkpoint, for messages.

    Raises:
        CheckpointError: there are more or fewer, or they have other names.
    """
    advice = "the order of samples would differ: resume with the data that it began with"
    if content["num_images"] != len(ids):
        raise CheckpointError(
            f"{path} was trained on {content['num_images']:,} images, DATA holds {len(ids):,}; {advice}"
        )
    if content["image_names_sha256"] != names_sha256(ids):
        raise CheckpointError(
            f"{path} was trained on {len(ids):,} images of other names than those of DATA, or in other order; {advice}"
        )


def check_resumable(
    content: Mapping[str, Any], config: Config, path: Path, hardware: Hardware | None = None
) -> list[Change]:
    """Make sure that a run may go on from a checkpoint under a configuration.

    Args:
        content: of a checkpoint of ours.
        config: under which the run is to go on.
        path: of the checkpoint, for messages.
        hardware: on which it is to go on; None where that does not matter.

    Returns:
        What is no longer as it was, and may change.

    Raises:
        CheckpointError: a setting differs that the result depends on, each named with both values; or more steps have
            been done than the configuration asks for.
    """
    before = stored_config(content, path)
    there, here = _settings(before), _settings(with_open_values(config, before))
    if hardware is not None:
        there, here = there | content.get("hardware", {}), here | hardware.settings()
    changes = [
        Change(name, there[name], value, _effect(name, config))
        for name, value in here.items()
        if name in there and there[name] != value
    ]
    wrong = [_told_of_both(change) for change in changes if change.effect is Effect.RESULT]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the configuration: {'; '.join(wrong)}; resume with the settings of the checkpoint, "
            "or begin another run in another --output"
        )
    _check_length(content, config, path)
    return changes


def stored_config(content: Mapping[str, Any], path: Path) -> Config:
    """The configuration in a checkpoint; keys that it lacks have today's default.

    Raises:
        CheckpointError: it cannot be used.
    """
    try:
        return Config.model_validate(content["config"])
    except (KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} holds a configuration that cannot be used: {reason}") from None


def with_open_values(config: Config, before: Config) -> Config:
    """A configuration in which the values that it leaves open are those of the run that is resumed."""
    names = ("learning_rate", "ema_momentum", "warmup_fraction")
    found = {name: getattr(before.train, name) for name in names if getattr(config.train, name) is None}
    data = config.data
    if data.cache_images is not None and data.cache_side is None and before.data.cache_images is not None:
        data = data.model_copy(update={"cache_side": before.data.cache_side})
    return config.model_copy(update={"train": config.train.model_copy(update=found), "data": data})


def _settings(config: Config) -> dict[str, Any]:
    """All settings by their full names; a patch as large as it is, and cached images as small as they are, if any."""
    sections = config.model_dump(mode="json")
    found = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    side = None if config.data.cache_images is None else config.data.cache_side
    return found | {"model.patch_size": config.model.patch_px, _CACHE_SIDE: side}


def _effect(name: str, config: Config) -> Effect:
    if name == "train.accumulate" and config.loss.koleo_weight:
        return Effect.RESULT  # KoLeo spreads the images of a part apart
    return Effect.ROUNDING if name == _PROCESSES else EFFECTS[name]


def _check_length(content: Mapping[str, Any], config: Config, path: Path) -> None:
    if (done := content.get("step", 0)) > (asked := config.train.num_steps(content.get("num_images", 1))):
        raise CheckpointError(
            f"{path} has done {done:,} steps, more than the {asked:,} that train.steps or train.epochs now asks for; "
            "ask for more, or begin another run in another --output"
        )


def _told_of_both(change: Change) -> str:
    told = f"{change.name} is {_told(change.before)} in the checkpoint and {_told(change.now)} in the configuration"
    if change.name != _CACHE_SIDE or None not in (change.before, change.now):
        return told
    way = "come from data.cache_images" if change.now is None else "do not come from a cache"
    return f"{told} (images of the run {way}, and those of a cache may be shrunk)"


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
