"""Backbones of any origin behind one small interface."""

from collections.abc import Callable

from patchssl.backbones import files, floors, timm_models, torchvision_models
from patchssl.backbones.objects import as_backbone
from patchssl.backbones.options import LoadOptions
from patchssl.backbones.protocol import Backbone, Preprocess
from patchssl.backbones.report import LoadReport
from patchssl.backbones.spec import ModelSpec, parse_spec

__all__ = ["Backbone", "LoadReport", "ModelSpec", "Preprocess", "as_backbone", "load_backbone", "parse_spec"]

# By the kind of a parsed SPEC.
LOADERS: dict[str, Callable[[ModelSpec, LoadOptions], Backbone]] = {
    "path": files.load_path,
    "timm": timm_models.load_timm,
    "torchvision": torchvision_models.load_torchvision,
    "floor": floors.load_floor,
}


def load_backbone(
    spec: str,
    *,
    checkpoint_key: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    arch: str | None = None,
    num_heads: int | None = None,
    allow_partial: bool | None = False,
    assumed_heads: int | None = None,
) -> Backbone:
    """Load the model that a SPEC names, in evaluation mode.

    Args:
        spec: a run folder or checkpoint of ours, either followed by `@random` for the same architecture with fresh
            weights; a weight file of DINO, iBOT, PW-Self, DINOv2, DINOv3 or timm; `timm:NAME` or `torchvision:NAME`
            for pretrained weights, followed by `@random` for fresh ones or by `@FILE` for those of a file; or
            `floor:NAME`.
        checkpoint_key: `teacher` or `student`, of a training checkpoint; None for the teacher where there are two.
        device: where to put it.
        seed: of fresh weights.
        arch: the architecture of a file that does not tell it: a name of timm, or DINO's `vit_small` and its kin.
        num_heads: the number of heads where neither file nor width tells it.
        allow_partial: accept a file that does not fill the network; the rest keeps fresh weights. None for False where
            messages shall not offer it.
        assumed_heads: the number of heads where neither file, width nor num_heads tells it.

    Raises:
        ConfigError: the SPEC is of no accepted form, or an option has no meaning for it.
        CheckpointError: the weights cannot be had or read, or do not fill the network.
    """
    options = LoadOptions(
        checkpoint_key=checkpoint_key,
        seed=seed,
        arch=arch,
        num_heads=num_heads,
        allow_partial=allow_partial,
        assumed_heads=assumed_heads,
    )
    parsed = parse_spec(spec)
    return LOADERS[parsed.kind](parsed, options).to(device)
