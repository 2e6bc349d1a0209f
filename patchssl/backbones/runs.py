"""Backbones of our own runs: `RUN/checkpoints/step-*.pt`."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from patchssl.backbones.preprocess import Preprocess
from patchssl.backbones.protocol import Backbone, fresh_weights
from patchssl.backbones.spec import ModelSpec
from patchssl.backbones.vit import ViTReader, build_vit
from patchssl.checkpoint import load_checkpoint
from patchssl.config import ModelConfig
from patchssl.errors import CheckpointError

logger = logging.getLogger(__name__)

KEYS = ("teacher", "student")
_PREFIX = "backbone."
_STEP = re.compile(r"^step-(\d+)\.pt$")


def load_run(spec: ModelSpec, *, checkpoint_key: str, seed: int) -> Backbone:
    """Build the network of a checkpoint and fill it, or with `@random` leave its fresh weights.

    Args:
        spec: of kind `run`.
        checkpoint_key: `teacher` or `student`.
        seed: of the weights of `@random`.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged or of another kind, or a weight is missing, unexpected
            or of another shape.
    """
    if checkpoint_key not in KEYS:
        raise CheckpointError(f"checkpoint key {checkpoint_key!r} is unknown; allowed: {', '.join(KEYS)}")
    path = find_checkpoint(Path(spec.name))
    # Mapped, so that the optimiser's state, which nobody asks for here, stays on disk.
    content = load_checkpoint(path, mapped=True)
    model, image_px = _architecture(content, path)
    with fresh_weights(seed):
        network = build_vit(model, image_px)
    if not spec.random:
        fill(network, content[checkpoint_key], path)
    return Backbone.of(
        network,
        ViTReader(),
        spec=spec.text,
        family="patchssl",
        arch=model.arch,
        dim=network.embed_dim,
        patch_px=model.patch_px,
        preprocess=Preprocess(image_px=image_px, resize_px=int(image_px / model.crop_fraction)),
        pooling=model.pooling,
        checkpoint_key=None if spec.random else checkpoint_key,
    )


def find_checkpoint(path: Path) -> Path:
    """The checkpoint itself, or the newest of a run folder.

    Raises:
        CheckpointError: the folder holds none.
    """
    if path.is_file():
        return path
    latest = path / "checkpoints" / "latest"
    if latest.is_file():
        return latest
    steps = {int(found[1]): file for file in path.glob("checkpoints/step-*.pt") if (found := _STEP.search(file.name))}
    if not steps:
        raise CheckpointError(
            f"{path} holds no checkpoint: neither checkpoints/latest nor checkpoints/step-*.pt; give a folder that "
            "`patchssl pretrain --output` wrote, or a checkpoint file"
        )
    newest = steps[max(steps)]
    logger.warning("%s is missing; taking %s", latest, newest.name)
    return newest


def _architecture(content: Mapping[str, Any], path: Path) -> tuple[ModelConfig, int]:
    try:
        model = ModelConfig.model_validate(content["config"]["model"])
        return model, int(content["config"]["views"]["global_size"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{path} holds a configuration that cannot be used: {error}") from None


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load the `backbone.*` weights of a state dict; each of them, and nothing else, must find its place.

    Raises:
        CheckpointError: some do not; the message counts them and names the first.
    """
    weights = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    wanted = network.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - wanted.keys()),
        "of another shape": sorted(
            name for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape
        ),
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in problems.items()
            if names
        )
        raise CheckpointError(
            f"{path} does not fit the network of its own configuration: of {len(wanted)} backbone weights {told}; "
            "the file was changed or cut, take another checkpoint of the run"
        )
    network.load_state_dict(weights)
