"""Whether a checkpoint is of the networks that a configuration asks for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from patchssl.config import Config, ModelConfig
from patchssl.errors import CheckpointError

# The student's regularisation and the crops of evaluations, which may change while a run lasts.
_FREE = ("drop_path", "crop_fraction")
_WEIGHT, _SIDE, _CENTER = "loss.patch_weight", "views.global_size", "loss.center"


def check_same_network(content: Mapping[str, Any], config: Config, path: Path) -> None:
    """Make sure that a run may go on from a checkpoint under a configuration.

    Args:
        content: of a checkpoint of ours.
        config: under which the run is to go on.
        path: of the checkpoint, for messages.

    Raises:
        CheckpointError: settings differ that networks, heads and centres are built from; it names both values of each.
    """
    there, here = _deciding(content["config"], path), _deciding(config.model_dump(mode="json"), path)
    wrong = [
        f"{key} is {_told(value)} in the checkpoint and {_told(here[key])} in the configuration"
        for key, value in there.items()
        if here.get(key, value) != value
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the configuration: {'; '.join(wrong)}; resume with the settings of the checkpoint, "
            "or begin another run in another --output"
        )


def _deciding(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings that networks, heads and centres are built from; those that a checkpoint lacks, by default."""
    try:
        model = ModelConfig.model_validate(config["model"])
        side, weight = config["views"]["global_size"], config["loss"]["patch_weight"]
        by_position = config["loss"].get("center") == "position"
    except (KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} holds a configuration that cannot be used: {reason}") from None
    settings = model.model_copy(update={"patch_size": model.patch_px}).model_dump(exclude=set(_FREE))
    if weight <= 0 or model.shared_head:
        del settings["patch_prototypes"]
    found = {f"model.{name}": value for name, value in settings.items()}
    # Centres of positions are a matrix; those of the other ways are one row, and may stand in for each other.
    center = "position" if by_position and weight > 0 else "another than position"
    return {**found, _SIDE: side, _WEIGHT: "above 0" if weight > 0 else 0, _CENTER: center}


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
