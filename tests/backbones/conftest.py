"""Tiny weight files of other projects, drawn here under those projects' names."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from timm.models import eva, generate_default_cfgs, register_model, vision_transformer
from torch import Tensor, nn

State = dict[str, Tensor]

_NANO: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
_DINOV2: dict[str, Any] = {"patch_size": 14, "img_size": 56, "init_values": 1e-5, **_NANO}
_DINOV3: dict[str, Any] = {
    "patch_size": 16,
    "dynamic_img_size": True,
    "init_values": 1e-5,
    "rope_type": "dinov3",
    "rope_temperature": 100,
    "rope_rotate_half": True,
    "use_rot_pos_emb": True,
    "use_abs_pos_emb": False,
    "num_reg_tokens": 4,
    "use_fc_norm": False,
    "qkv_bias": False,
    **_NANO,
}


@pytest.fixture
def golden(repository: Path) -> Path:
    """Outputs of the original projects."""
    return repository / "tests" / "golden"


@pytest.fixture
def draw_vit() -> Callable[..., State]:
    """Draws the weights of a ViT as DINO, iBOT, PW-Self and DINOv2 name them."""
    return _draw_vit


@pytest.fixture(scope="session")
def nano() -> None:
    """Adds networks of two blocks to timm: `vit_nano_patch14_dinov2`, `…_reg4_dinov2`, `vit_nano*_patch16_dinov3*`."""
    vit, rope = vision_transformer._create_vision_transformer, eva._create_eva
    _register(vision_transformer, vit, "vit_nano_patch14_dinov2", _DINOV2)
    registers = {"reg_tokens": 4, "no_embed_class": True}
    _register(vision_transformer, vit, "vit_nano_patch14_reg4_dinov2", _DINOV2 | registers)
    _register(eva, rope, "vit_nano_patch16_dinov3", _DINOV3)
    _register(eva, rope, "vit_nano_patch16_dinov3_qkvb", _DINOV3 | {"qkv_bias": True})
    _register(eva, rope, "vit_nano_plus_patch16_dinov3", _DINOV3 | {"swiglu_mlp": True, "swiglu_align_to": 8})


def _register(module: ModuleType, create: Callable[..., nn.Module], name: str, settings: dict[str, Any]) -> None:
    if timm.is_model(name):
        return

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(name, pretrained=pretrained, **(settings | kwargs))

    entry.__name__, entry.__module__ = name, module.__name__
    size = settings.get("img_size", 32)
    module.__dict__["default_cfgs"].update(
        generate_default_cfgs({name: {"input_size": (3, size, size), "classifier": "head"}})
    )
    assert sys.modules[module.__name__] is module
    register_model(entry)


def _draw_vit(
    *,
    dim: int = 48,
    depth: int = 2,
    patch: int = 8,
    side: int = 4,
    registers: int = 0,
    layer_scale: bool = False,
    gated: bool = False,
    chunk: int = 0,
    seed: int = 0,
) -> State:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    state = {
        "cls_token": draw(1, 1, dim),
        "pos_embed": draw(1, side * side + 1, dim),
        "patch_embed.proj.weight": draw(dim, 3, patch, patch),
        "patch_embed.proj.bias": draw(dim),
    }
    if registers:
        state["register_tokens"] = draw(1, registers, dim)
    # SwiGLU has two thirds of the width, and its first layer twice that.
    hidden, names = (2 * dim, ("w12", "w3")) if gated else (4 * dim, ("fc1", "fc2"))
    for block in range(depth):
        stem = f"blocks.{block // chunk}.{block}" if chunk else f"blocks.{block}"
        for norm in ("norm1", "norm2"):
            state |= {f"{stem}.{norm}.weight": 1 + draw(dim), f"{stem}.{norm}.bias": draw(dim)}
        state |= {f"{stem}.attn.qkv.weight": draw(3 * dim, dim), f"{stem}.attn.qkv.bias": draw(3 * dim)}
        state |= {f"{stem}.attn.proj.weight": draw(dim, dim), f"{stem}.attn.proj.bias": draw(dim)}
        inner = hidden // 2 if gated else hidden
        state |= {f"{stem}.mlp.{names[0]}.weight": draw(hidden, dim), f"{stem}.mlp.{names[0]}.bias": draw(hidden)}
        state |= {f"{stem}.mlp.{names[1]}.weight": draw(dim, inner), f"{stem}.mlp.{names[1]}.bias": draw(dim)}
        if layer_scale:
            state |= {f"{stem}.ls1.gamma": draw(dim), f"{stem}.ls2.gamma": draw(dim)}
    return {**state, "norm.weight": 1 + draw(dim), "norm.bias": draw(dim)}
