"""Weight names of DINOv2 → of the network here."""

from collections.abc import Mapping

from torch import Tensor

_HEADS = ("head.", "dino_head.", "ibot_head.", "dino_loss.", "ibot_patch_loss.", "koleo_loss.")
_TRAINING = ("mask_token",)
_GATED = {"w12": "fc1", "w3": "fc2"}


def remap_dinov2(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the weights of a backbone.

    Training checkpoints have blocks in chunks, `blocks.CHUNK.BLOCK.*`, where BLOCK counts through all chunks; SwiGLU
    is `w12` and `w3`.

    Returns:
        The backbone's weights by timm's names, and the names of what belongs to training only.
    """
    kept: dict[str, Tensor] = {}
    dropped: list[str] = []
    for name, value in weights.items():
        if name.startswith(_HEADS) or name in _TRAINING:
            dropped.append(name)
            continue
        parts = without_chunk(name).split(".")
        if "mlp" in parts:
            parts = [_GATED.get(part, part) for part in parts]
        kept["reg_token" if name == "register_tokens" else ".".join(parts)] = value
    return kept, dropped


def without_chunk(name: str) -> str:
    """`blocks.0.3.norm1.weight` → `blocks.3.norm1.weight`; other names stay."""
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) > 2 and parts[2].isdigit():
        del parts[1]
    return ".".join(parts)
