"""What a network of torchvision is: how it is read, which sizes it takes, how images are prepared for it."""

import copy
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from patchssl.backbones.preprocess import Preprocess
from patchssl.backbones.sizes import Sizes
from patchssl.backbones.torchvision_readers import TorchvisionMapReader, TorchvisionViTReader, remove_classifier


def describe(network: Any, name: str) -> dict[str, Any]:
    """The facts of a network without classifier, as `Backbone.of` takes them.

    Args:
        network: of torchvision.
        name: of its architecture, which tells the preprocessing.
    """
    preprocess = preprocessing(name, getattr(network, "image_size", None))
    common = {"family": "torchvision", "arch": name, "preprocess": preprocess}
    if isinstance(network, models.VisionTransformer):
        patch_px = network.patch_size
        return {
            **common,
            "reader": TorchvisionViTReader(),
            "dim": network.hidden_dim,
            "patch_px": patch_px,
            "num_heads": network.encoder.layers[-1].num_heads,
            "positions": "torchvision",
            "sizes": Sizes(
                multiple_px=patch_px,
                min_px=patch_px,
                fixed_px=network.image_size,
                rebuild=_rebuilt_vit,
                free=False,
            ),
        }
    dim, cell_px = _probe(network, preprocess.image_px)
    return {
        **common,
        "reader": TorchvisionMapReader(),
        "dim": dim,
        "patch_px": cell_px,
        "pooling": "head",
        "sizes": _sizes(network, name, cell_px, preprocess.image_px),
    }


def preprocessing(name: str, image_px: int | None = None) -> Preprocess:
    """The geometry and colours of the transforms that come with an architecture's weights.

    Args:
        name: of the architecture.
        image_px: of the weights for this size, where there are some; None for the default weights.
    """
    weights = models.get_model_weights(name)
    choices = [entry.transforms() for entry in (weights.DEFAULT, *weights)]
    transforms = next((entry for entry in choices if image_px in (None, entry.crop_size[0])), choices[0])
    preprocess = Preprocess(
        image_px=transforms.crop_size[0],
        resize_px=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )
    return preprocess if image_px is None else preprocess.at_size(image_px)


def _probe(network: nn.Module, side: int) -> tuple[int, int]:
    """D and the pixels that a cell of the last map spans, from one pass."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        (tokens,) = TorchvisionMapReader().last_blocks(network.eval(), torch.zeros(1, 3, side, side, device=device), 1)
    return tokens.cls.shape[1], round(side / tokens.grid[0])


def _sizes(network: nn.Module, name: str, cell_px: int, native_px: int) -> Sizes:
    if isinstance(network, models.MaxVit):
        return Sizes(min_px=cell_px, fixed_px=native_px, rebuild=_rebuilt_maxvit, free=False)
    # Windows are padded, so that a size below torchvision's works as well.
    least = (
        1 if isinstance(network, models.SwinTransformer) else models.get_model_weights(name).DEFAULT.meta["min_size"][0]
    )
    return Sizes(min_px=max(cell_px, least), trial=True)


def _rebuilt_vit(network: Any, image_px: int) -> nn.Module:
    """A copy for another size, with torchvision's own interpolation of the position embedding."""
    rebuilt = copy.deepcopy(network)
    state = interpolate_embeddings(image_px, network.patch_size, network.state_dict())
    rebuilt.encoder.pos_embedding = nn.Parameter(state["encoder.pos_embedding"], requires_grad=False)
    rebuilt.image_size = image_px
    rebuilt.seq_length = rebuilt.encoder.pos_embedding.shape[1]
    return rebuilt  # type: ignore[no-any-return]


def _rebuilt_maxvit(network: nn.Module, image_px: int) -> nn.Module:
    """The same weights in a network for another size; torchvision refuses what its windows do not divide."""
    rebuilt: nn.Module = models.maxvit_t(input_size=(image_px, image_px))
    remove_classifier(rebuilt)
    rebuilt.load_state_dict(network.state_dict())
    return rebuilt.requires_grad_(False)
