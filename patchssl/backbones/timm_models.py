"""Architectures of timm."""

import difflib

import timm
from timm.models.vision_transformer import VisionTransformer

from patchssl.backbones.preprocess import Preprocess
from patchssl.backbones.protocol import Backbone, fresh_weights
from patchssl.backbones.spec import ModelSpec
from patchssl.backbones.vit import ViTReader
from patchssl.errors import ConfigError

_DINO = Preprocess(image_px=224, resize_px=256)
_NEEDED = "of timm only ViTs with a class token (vit_*, deit*) are supported so far"


def load_untrained(spec: ModelSpec, *, seed: int) -> Backbone:
    """Build a ViT of timm with fresh weights, as a floor to compare with. Nothing is downloaded.

    Args:
        spec: of kind `timm`.
        seed: of the weights.

    Raises:
        ConfigError: timm does not know the name, or it is no ViT with a class token.
    """
    # Names that timm would look up elsewhere, such as hf-hub:…, are unknown to is_model and stop here.
    if not timm.is_model(spec.name):
        near = difflib.get_close_matches(spec.name, timm.list_models("*vit_*"), n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else "; timm.list_models('vit_*') lists the ViTs"
        raise ConfigError(f"timm {timm.__version__} knows no architecture {spec.name!r}{hint}")
    try:
        with fresh_weights(seed):
            network = timm.create_model(
                spec.name, pretrained=False, num_classes=0, dynamic_img_size=True, global_pool="token"
            )
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{spec.text!r} cannot be used: {_NEEDED} (timm says: {error})") from None
    if not isinstance(network, VisionTransformer) or network.cls_token is None:
        raise ConfigError(f"{spec.text!r} is a {type(network).__name__}: {_NEEDED}")
    backbone = Backbone.of(
        network,
        ViTReader(),
        spec=spec.text,
        family="timm",
        arch=spec.name,
        dim=network.embed_dim,
        patch_px=network.patch_embed.patch_size[0],
        preprocess=_DINO,
    )
    return backbone.at_size(_DINO.image_px)
