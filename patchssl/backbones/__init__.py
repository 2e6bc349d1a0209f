"""Backbones of any origin behind one small interface."""

from patchssl.backbones import floors, runs, timm_models
from patchssl.backbones.protocol import Backbone, Preprocess
from patchssl.backbones.spec import ModelSpec, parse_spec

__all__ = ["Backbone", "ModelSpec", "Preprocess", "load_backbone", "parse_spec"]


def load_backbone(spec: str, *, checkpoint_key: str = "teacher", device: str = "cpu", seed: int = 0) -> Backbone:
    """Load the model that a SPEC names, in evaluation mode.

    Args:
        spec: a run folder or `.pt` checkpoint of ours, either followed by `@random` for the same architecture with
            fresh weights; `timm:NAME@random`; or `floor:NAME`.
        checkpoint_key: `teacher` or `student`, for checkpoints of ours.
        device: where to put it.
        seed: of fresh weights.

    Raises:
        ConfigError: the SPEC is of no accepted form, or names no ViT.
        CheckpointError: the file cannot be read or does not fill the network.
    """
    parsed = parse_spec(spec)
    if parsed.kind == "timm":
        backbone = timm_models.load_untrained(parsed, seed=seed)
    elif parsed.kind == "floor":
        backbone = floors.load_floor(spec)
    else:
        backbone = runs.load_run(parsed, checkpoint_key=checkpoint_key, seed=seed)
    return backbone.to(device)
