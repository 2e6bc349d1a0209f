"""Which of timm's architectures a DINOv3 file is of. Timm's own conversion renames the weights."""

import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from patchssl.backbones.report import listed
from patchssl.backbones.timm_convert import convert
from patchssl.errors import CheckpointError

_BLOCK = re.compile(r"^blocks\.(\d+)\.")
_BIAS = "attn.qkv.bias"


def find_arch(weights: Mapping[str, Tensor], origin: str) -> str:
    """Which of timm's DINOv3 architectures has weights of these names and shapes.

    Args:
        weights: by DINOv3's names.
        origin: the file, for messages.

    Raises:
        CheckpointError: none has.
    """
    depth = 1 + max((int(found[1]) for name in weights if (found := _BLOCK.match(name))), default=-1)
    patch = weights.get("patch_embed.proj.weight", torch.empty(0, 3, 0, 0))
    biased = has_live_bias(weights)
    for name in timm.list_models("*dinov3*"):
        # A single block first: the largest have thousands of modules.
        if _on_meta(name, depth=1).embed_dim != patch.shape[0]:
            continue
        network = _on_meta(name)
        if len(network.blocks) != depth:
            continue
        wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        given = {key: tuple(value.shape) for key, value in convert(network, weights, origin).weights.items()}
        if wanted == given and biased == any(key.endswith("q_bias") for key in wanted):
            return name
    raise CheckpointError(
        f"{origin} is of DINOv3 with width {patch.shape[0]}, {depth} blocks and patches of {patch.shape[-1]} px, and "
        f"none of the architectures of timm {timm.__version__} has exactly these weights "
        f"({listed(timm.list_models('*dinov3*'), 20)}); name the nearest, timm:NAME@{origin}, to see what differs"
    )


def _on_meta(name: str, **settings: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **settings)


def has_live_bias(weights: Mapping[str, Tensor]) -> bool:
    """Whether queries or values have a bias that is not zero; that of keys is masked in DINOv3.

    Timm has networks without any for the files whose biases are all zero.
    """
    biases = [bias.chunk(3) for name, bias in weights.items() if name.endswith(_BIAS)]
    return any(bool(queries.any()) or bool(values.any()) for queries, _, values in biases)
