"""Backbones of our own runs: `RUN/checkpoints/step-*.pt`."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchssl.backbones.options import LoadOptions
from patchssl.backbones.preprocess import Preprocess
from patchssl.backbones.protocol import Backbone, fresh_weights
from patchssl.backbones.report import LoadReport, fill
from patchssl.backbones.spec import ModelSpec
from patchssl.backbones.vit import ViTReader, build_vit
from patchssl.checkpoint import load_checkpoint
from patchssl.config import ModelConfig
from patchssl.errors import CheckpointError

logger = logging.getLogger(__name__)

FAMILY = "patchssl"
KEYS = ("teacher", "student")
_PREFIX = "backbone."
_STEP = re.compile(r"^step-(\d+)\.pt$")


def load_run(spec: ModelSpec, path: Path, options: LoadOptions) -> Backbone:
    """Build the network of a checkpoint and fill it, or with `@random` leave its fresh weights.

    Args:
        spec: of a run folder or checkpoint.
        path: the checkpoint.
        options: which network, and the seed of the weights of `@random`.

    Raises:
        ConfigError: an option has no meaning for it.
        CheckpointError: it is damaged or of another kind, or a weight is missing, unexpected or of another shape.
    """
    options.refuse("arch", "num_heads", spec=spec.text, reason="the run's configuration tells the architecture")
    if spec.random:
        options.refuse("checkpoint_key", "allow_partial", spec=spec.text, reason="its weights are fresh")
    checkpoint_key = options.checkpoint_key or KEYS[0]
    if checkpoint_key not in KEYS:
        raise CheckpointError(f"checkpoint key {checkpoint_key!r} is unknown; allowed: {', '.join(KEYS)}")
    # Mapped, so that the optimiser's state, which nobody asks for here, stays on disk.
    content = load_checkpoint(path, mapped=True)
    model, image_px = _architecture(content, path)
    with fresh_weights(options.seed):
        network = build_vit(model, image_px)
    load = None if spec.random else _fill(network, content[checkpoint_key], path, options)
    return run_backbone(
        network,
        model,
        image_px,
        spec=spec.text,
        checkpoint_key=None if spec.random else checkpoint_key,
        load=load,
    )


def run_backbone(
    network: VisionTransformer,
    model: ModelConfig,
    image_px: int,
    *,
    spec: str,
    checkpoint_key: str | None,
    load: LoadReport | None = None,
) -> Backbone:
    """A network of one of our runs as every evaluation takes it; it is frozen.

    Args:
        network: as `build_vit` makes it.
        model: what it was built from.
        image_px: side of a global view.
        spec: of the Backbone.
        checkpoint_key: of the Backbone.
        load: of the Backbone.
    """
    attention: Any = network.blocks[0].attn
    return Backbone.of(
        network,
        ViTReader(),
        spec=spec,
        family=FAMILY,
        arch=model.arch,
        dim=network.embed_dim,
        patch_px=model.patch_px,
        preprocess=Preprocess(image_px=image_px, resize_px=int(image_px / model.crop_fraction)),
        pooling=model.pooling,
        checkpoint_key=checkpoint_key,
        num_heads=attention.num_heads,
        num_registers=network.num_reg_tokens,
        positions="timm",
        load=load,
        keeps_geometry=True,
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
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} holds a configuration that cannot be used: {reason}") from None


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, options: LoadOptions) -> LoadReport:
    return fill(
        network,
        {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)},
        origin=str(path),
        arch="the network of its own configuration",
        advice="the file was changed or cut, take another checkpoint of the run",
        dropped=[name for name in state if not name.startswith(_PREFIX)],
        allow_partial=options.allow_partial,
    )
