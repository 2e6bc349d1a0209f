"""Weight names of DINO, iBOT and PW-Self → of the network here."""

from collections.abc import Mapping

from torch import Tensor

_HEADS = ("head.", "mlp.", "last_layer.", "last_layer2.", "dino_loss.", "ibot_loss.")
_TRAINING = ("masked_embed", "mask_token")


def remap_dino(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the weights of a backbone.

    iBOT writes LayerScale, where it has it, as `gamma_1` and `gamma_2`.

    Returns:
        The backbone's weights by timm's names, and the names of what belongs to training only.
    """
    kept: dict[str, Tensor] = {}
    dropped: list[str] = []
    for name, value in weights.items():
        if name.startswith(_HEADS) or name in _TRAINING:
            dropped.append(name)
            continue
        parts = name.split(".")
        if parts[0] == "blocks" and parts[-1] in ("gamma_1", "gamma_2"):
            parts[-1:] = [f"ls{parts[-1][-1]}", "gamma"]
        kept[".".join(parts)] = value
    return kept, dropped
