"""ViTs of DINO, iBOT, PW-Self and DINOv2, built from the shapes in a file."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers.mlp import Mlp, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchssl.backbones.positions import RESAMPLINGS
from patchssl.errors import CheckpointError

_BLOCK = re.compile(r"^blocks\.(\d+)\.")
_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """What the weights of a ViT tell about it.

    Attributes:
        dim: D.
        depth: number of blocks.
        patch_px: side of a patch.
        grid_side: of the position embedding.
        num_registers: 0 where there are none.
        hidden: width of the first layer of the MLPs.
        gated: whether the MLPs are SwiGLU.
        layer_scale: whether branches are scaled.
        qkv_bias: whether queries, keys and values have a bias.
    """

    dim: int
    depth: int
    patch_px: int
    grid_side: int
    num_registers: int
    hidden: int
    gated: bool
    layer_scale: bool
    qkv_bias: bool


class ReferenceViT(VisionTransformer):
    """A ViT of timm whose position embedding belongs to class token and patches and is resampled as told.

    Registers, where there are any, come after the class token and have no position.
    """

    def __init__(self, *, resampling: str, grid_side: int, **settings: Any) -> None:
        super().__init__(dynamic_img_size=True, num_classes=0, **settings)
        self.resampling = resampling
        self.grid_side = grid_side
        # Timm would give registers a position, too.
        self.pos_embed = nn.Parameter(torch.zeros(1, grid_side**2 + 1, self.embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """(B, H, W, D) patches → (B, 1 + R + H * W, D)."""
        num_images, height, width = x.shape[:3]
        own = self.pos_embed
        assert own is not None
        assert self.cls_token is not None
        patches = RESAMPLINGS[self.resampling](own[:, 1:], self.grid_side, (height, width)).to(x.dtype)
        prefix = [self.cls_token + own[:, :1], *([] if self.reg_token is None else [self.reg_token])]
        tokens = [part.expand(num_images, -1, -1) for part in prefix]
        return torch.cat([*tokens, x.flatten(1, 2) + patches], dim=1)


def anatomy(weights: Mapping[str, Tensor], origin: str) -> Anatomy:
    """Read the anatomy of a ViT from its weights, which have timm's names.

    Raises:
        CheckpointError: a weight that tells is missing, or the position embedding is of no square.
    """
    blocks = [int(found[1]) for name in weights if (found := _BLOCK.match(name))]
    telling = (
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
    )
    absent = [name for name in telling if name not in weights]
    if absent or not blocks:
        raise CheckpointError(f"{origin} lacks {', '.join(absent or ['blocks.*'])}, so no ViT can be built from it")
    patch = weights["patch_embed.proj.weight"]
    num_positions = weights["pos_embed"].shape[1] - 1
    side = math.isqrt(num_positions)
    if patch.ndim != 4 or patch.shape[2] != patch.shape[3] or side * side != num_positions:
        raise CheckpointError(
            f"{origin} has patches of {tuple(patch.shape[2:])} px and {num_positions} positions beside the class "
            "token's; only square patches on a square grid can be read"
        )
    hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
    return Anatomy(
        dim=patch.shape[0],
        depth=max(blocks) + 1,
        patch_px=patch.shape[2],
        grid_side=side,
        num_registers=weights["reg_token"].shape[1] if "reg_token" in weights else 0,
        hidden=hidden,
        gated=weights["blocks.0.mlp.fc2.weight"].shape[1] * 2 == hidden,
        layer_scale="blocks.0.ls1.gamma" in weights,
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
    )


def build(shape: Anatomy, *, num_heads: int, resampling: str) -> ReferenceViT:
    """Build a ViT with fresh weights.

    Args:
        shape: its anatomy.
        num_heads: of its attention, which no weight tells.
        resampling: a key of `RESAMPLINGS`.
    """
    mlp = SwiGLUPacked if shape.gated else Mlp

    def mlp_layer(in_features: int, hidden_features: int, **settings: Any) -> nn.Module:
        # The width of the file, not one computed from a ratio, which may round to its neighbour.
        if shape.gated:
            # It has its own, the SiLU of its gate.
            settings.pop("act_layer", None)
        made: nn.Module = mlp(in_features, shape.hidden, **settings)
        return made

    return ReferenceViT(
        resampling=resampling,
        grid_side=shape.grid_side,
        img_size=shape.grid_side * shape.patch_px,
        patch_size=shape.patch_px,
        embed_dim=shape.dim,
        depth=shape.depth,
        num_heads=num_heads,
        qkv_bias=shape.qkv_bias,
        init_values=1.0 if shape.layer_scale else None,
        reg_tokens=shape.num_registers,
        norm_layer=partial(nn.LayerNorm, eps=_NORM_EPS),
        mlp_layer=mlp_layer,
    )
