"""What a network of timm is: how it is read, which sizes it takes, how images are prepared for it."""

import copy
import inspect
import math
from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from patchssl.backbones.preprocess import CROP, SQUASH, Preprocess
from patchssl.backbones.sizes import Sizes
from patchssl.backbones.timm_readers import TimmMapReader
from patchssl.backbones.vit import ViTReader
from patchssl.errors import ConfigError

_SQUASH, _CENTRE = "squash", "center"
_POOLINGS = {"avg": "mean", "map": "attention", "prr": "attention"}


def describe(network: Any) -> dict[str, Any]:
    """The facts of a network without classifier, as `Backbone.of` takes them.

    Raises:
        ConfigError: it cannot be used: its images are no square RGB, or it gives no feature map.
    """
    preprocess = preprocessing(network)
    tokens = has_class_token(network)
    attention = getattr(network.blocks[-1], "attn", None) if tokens else None
    dim, cell_px = (network.embed_dim, network.patch_embed.feat_ratio()) if tokens else _probe(network, preprocess)
    return {
        "reader": ViTReader() if tokens else TimmMapReader(),
        "family": "timm",
        "arch": network.pretrained_cfg["architecture"],
        "dim": dim,
        "patch_px": cell_px,
        "preprocess": preprocess,
        "pooling": "cls" if tokens else _pooling(network),
        "num_heads": getattr(attention, "num_heads", None),
        "num_registers": network.num_prefix_tokens - 1 if tokens else 0,
        "positions": _positions(network),
        "sizes": _sizes(network, cell_px, preprocess.image_px),
    }


def has_class_token(network: Any) -> bool:
    """Whether the network's summary of an image is a class token that runs through all its blocks.

    Networks that have one and pool patches for their classifier, as BEiT does, count by what they pool.
    """
    if getattr(network, "cls_token", None) is None or not is_plain_vit(network):
        return False
    if "return_prefix_tokens" not in inspect.signature(network.forward_intermediates).parameters:
        return False
    pools_after = not isinstance(getattr(network, "fc_norm", None), nn.Identity | None)
    return getattr(network, "attn_pool", None) is None and not pools_after


def is_plain_vit(network: Any) -> bool:
    """Whether a network is one grid of patches from end to end, so that it means the same at any size."""
    return hasattr(network, "blocks") and hasattr(getattr(network, "patch_embed", None), "feat_ratio")


def preprocessing(network: Any) -> Preprocess:
    """The geometry and colours of timm's data configuration.

    Raises:
        ConfigError: images are not square or not RGB, or cropped in a way that is not known here.
    """
    config: dict[str, Any] = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    channels, height, width = config["input_size"]
    if channels != 3 or height != width or config["crop_mode"] not in (_CENTRE, _SQUASH):
        raise ConfigError(
            f"{network.pretrained_cfg['architecture']} takes images of {config['input_size']} cropped by "
            f"{config['crop_mode']!r}; only square RGB images, {_CENTRE!r} and {_SQUASH!r} are supported"
        )
    return Preprocess(
        image_px=height,
        # A few configurations ask for a crop that is larger than the image; it is then as large.
        resize_px=max(height, math.floor(height / config["crop_pct"])),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        fit=SQUASH if config["crop_mode"] == _SQUASH else CROP,
    )


def _probe(network: Any, preprocess: Preprocess) -> tuple[int, int]:
    """D and the pixels that a cell of the last map spans, from one pass."""
    side = preprocess.image_px
    reader = TimmMapReader()
    device = next(network.parameters()).device
    try:
        with torch.inference_mode():
            (tokens,) = reader.last_blocks(network.eval(), torch.zeros(1, 3, side, side, device=device), 1)
    except (AttributeError, RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{network.pretrained_cfg['architecture']} gives no pooled feature with a feature map that can be read: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from None
    return tokens.cls.shape[1], round(side / tokens.grid[0])


def _pooling(network: Any) -> str:
    pool = getattr(network, "global_pool", None)
    return _POOLINGS.get(pool, "head") if isinstance(pool, str) and hasattr(network, "blocks") else "head"


def _positions(network: Any) -> str | None:
    """`timm` for learned positions that it resamples, `rope` for rotary ones."""
    if getattr(network, "rope", None) is not None:
        return "rope"
    return "timm" if getattr(network, "pos_embed", None) is not None else None


def _sizes(network: Any, cell_px: int, native_px: int) -> Sizes:
    of_patches = is_plain_vit(network)
    multiple = cell_px if of_patches else 1
    if getattr(network, "dynamic_img_size", False) or not network.pretrained_cfg.get("fixed_input_size", False):
        return Sizes(multiple_px=multiple, min_px=cell_px, trial=not of_patches)
    if not hasattr(network, "set_input_size"):
        return Sizes(fixed_px=native_px, free=False)
    # A ViT means the same at any size; windows may have to change with it.
    return Sizes(
        multiple_px=multiple, min_px=cell_px, fixed_px=native_px, rebuild=_rebuilt, free=of_patches, trial=True
    )


def _rebuilt(network: nn.Module, image_px: int) -> nn.Module:
    """A copy for another size, by timm; the windows of a Swin Transformer stay as large as they are."""
    rebuilt: Any = copy.deepcopy(network)
    settings: dict[str, Any] = {"img_size": (image_px, image_px)}
    if type(network).__name__.startswith("SwinTransformer"):
        sizes = (getattr(module, "window_size", None) for module in network.modules())
        settings["window_size"] = next(size for size in sizes if isinstance(size, tuple))
    rebuilt.set_input_size(**settings)
    return rebuilt.requires_grad_(False)  # type: ignore[no-any-return]
