"""What makes two ViTs the same network, and the configuration under which one would be built as another is."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from patchssl.backbones.vit import build_vit
from patchssl.config import ModelConfig
from patchssl.errors import PatchsslError

# Facts that a setting of its own decides; all others follow from model.arch.
_SETTINGS = {"width": "width", "depth": "depth", "heads": "num_heads", "patch": "patch_size"}
_CLASS_TOKEN = "class token"
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "giant"}
_NAMES = ("vit_{}_patch16_224", "vit_{}_patch14_dinov2", "vit_{}_patch14_reg4_dinov2")


def vit_facts(network: VisionTransformer) -> dict[str, Any]:
    """What decides the function of a ViT beside its weights, by name; shapes of weights do not tell all of it."""
    block: Any = network.blocks[0]
    attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    height, width = network.patch_embed.patch_size
    norm = getattr(block, "norm1", None)
    return {
        "width": network.embed_dim,
        "depth": len(network.blocks),
        "heads": getattr(attention, "num_heads", None),
        "patch": height if height == width else (height, width),
        _CLASS_TOKEN: _yes(network.has_class_token),
        "registers": network.num_reg_tokens,
        "LayerScale": _yes(not isinstance(getattr(block, "ls1", None), nn.Identity | None)),
        "MLP": _mlp(mlp, network.embed_dim),
        "norm": f"{type(norm).__name__} (eps {getattr(norm, 'eps', None)})",
        "position embedding": _yes(network.pos_embed is not None),
        "bias of queries, keys and values": _yes(getattr(getattr(attention, "qkv", None), "bias", None) is not None),
        "block": f"{type(block).__name__} with {type(attention).__name__}",
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """`width 384 there, 192 here` for each fact in which two ViTs differ."""
    return [f"{name} {value} there, {here[name]} here" for name, value in there.items() if here[name] != value]


def settings_for(facts: Mapping[str, Any], model: ModelConfig, arch: str | None) -> dict[str, Any]:
    """What has to change in a configuration, so that it builds a ViT of these facts.

    Args:
        facts: of the ViT that is wanted.
        model: the configuration.
        arch: an architecture that is tried first.

    Returns:
        Keys of `model` with their values; empty where none of the usual architectures of timm fits.
    """
    size = _SIZES.get(facts["width"], "small")
    pooling = "cls" if facts[_CLASS_TOKEN] == _yes(True) else "mean"
    for name in (arch, *(form.format(size) for form in _NAMES), model.arch):
        if name is None or not timm.is_model(name):
            continue
        kept = model.model_copy(update={"arch": name, "pooling": pooling})
        found = _facts_of(kept)
        wrong = {key: facts[fact] for fact, key in _SETTINGS.items() if found is None or found[fact] != facts[fact]}
        whole = kept.model_copy(update=wrong)
        if _facts_of(whole) == facts:
            return {key: value for key, value in whole.model_dump().items() if value != getattr(model, key)}
    return {}


def told_settings(settings: Mapping[str, Any]) -> str:
    """`model.arch=… model.width=…`."""
    return " ".join(f"model.{name}={value}" for name, value in settings.items())


def _facts_of(model: ModelConfig) -> dict[str, Any] | None:
    """Of the ViT that a configuration builds, without its weights; None where it builds none."""
    try:
        with torch.device("meta"):
            return vit_facts(build_vit(model, 2 * model.patch_px))
    # Width and heads of two architectures need not fit together.
    except (PatchsslError, ValueError):
        return None


def _mlp(mlp: Any, width: int) -> str:
    """Kind, width in widths of the network, and activation."""
    layers = [layer for layer in mlp.modules() if isinstance(layer, nn.Linear)] if mlp is not None else []
    times = f"{layers[0].out_features / width:.4g}" if layers else "no"
    return f"{type(mlp).__name__} of {times} x width with {type(getattr(mlp, 'act', None)).__name__}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
