"""How networks of torchvision are run, and what their classifiers are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from patchssl.errors import ConfigError
from patchssl.structs import Tokens


@dataclass(frozen=True, slots=True)
class Parts:
    """Where in a network of torchvision its feature map and its classifier are.

    Attributes:
        map: the module whose output is the last feature map, (B, C, H, W).
        classifier: the layer that turns the pooled feature into scores of classes.
        training: modules that only training needs.
    """

    map: str
    classifier: str
    training: tuple[str, ...] = ()


# By the name of the class.
PARTS: Mapping[str, Parts] = {
    "AlexNet": Parts("features", "classifier.6"),
    "ConvNeXt": Parts("features", "classifier.2"),
    "DenseNet": Parts("features", "classifier"),
    "EfficientNet": Parts("features", "classifier.1"),
    "GoogLeNet": Parts("inception5b", "fc", ("aux1", "aux2")),
    "Inception3": Parts("Mixed_7c", "fc", ("AuxLogits",)),
    "MaxVit": Parts("blocks", "classifier.5"),
    "MNASNet": Parts("layers", "classifier.1"),
    "MobileNetV2": Parts("features", "classifier.1"),
    "MobileNetV3": Parts("features", "classifier.3"),
    "RegNet": Parts("trunk_output", "fc"),
    "ResNet": Parts("layer4", "fc"),
    "ShuffleNetV2": Parts("conv5", "fc"),
    # Its classifier is a convolution before pooling, so that pooling alone is left of it.
    "SqueezeNet": Parts("features", "classifier"),
    "SwinTransformer": Parts("permute", "head"),
    "VGG": Parts("features", "classifier.6"),
    "VisionTransformer": Parts("encoder", "heads"),
}


def parts_of(network: nn.Module) -> Parts:
    """Where the parts of a network are.

    Raises:
        ConfigError: it is of no class that is known here.
    """
    found = PARTS.get(type(network).__name__)
    if found is None:
        raise ConfigError(
            f"{type(network).__name__} is no classification network of torchvision that is known here; known are "
            f"{', '.join(PARTS)}; hand it over with a reader of its own: as_backbone(network, reader=…)"
        )
    return found


def remove_classifier(network: Any) -> None:
    """Leave the pooled feature as a network's output, and nothing that only training needs."""
    parts = parts_of(network)
    parent, _, last = parts.classifier.rpartition(".")
    pooled = nn.AdaptiveAvgPool2d(1) if type(network).__name__ == "SqueezeNet" else nn.Identity()
    setattr(network.get_submodule(parent), last, pooled)
    for name in parts.training:
        setattr(network, name, None)
    if parts.training:
        network.aux_logits = False


class TorchvisionMapReader:
    """Runs networks of torchvision without a class token.

    `cls` is what the classifier would be given, `patches` the last feature map before pooling.
    """

    def num_blocks(self, network: nn.Module) -> int:
        """Only the last block has a pooled feature."""
        return 1

    def last_blocks(self, network: nn.Module, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        """The pooled feature and the feature map.

        Args:
            network: without its classifier.
            pixels: (B, 3, h, w), normalised.
            num: 1.

        Returns:
            cls (B, D), patches (B, H * W, C).
        """
        kept: list[Tensor] = []
        module = network.get_submodule(parts_of(network).map)
        if isinstance(module, nn.ModuleList):
            module = module[-1]
        # A copy, since a network may go on with the map in place.
        handle = module.register_forward_hook(lambda module, inputs, output: kept.append(output.clone()))
        try:
            pooled = network(pixels)
        finally:
            handle.remove()
        maps = kept[0].relu() if type(network).__name__ == "DenseNet" else kept[0]
        return (Tokens(pooled.flatten(1), maps.flatten(2).mT, (maps.shape[2], maps.shape[3])),)

    def attention(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """There is none.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{type(network).__name__} has no class token, so there is no attention map of it; take a ViT that has one"
        )


class TorchvisionViTReader:
    """Runs the Vision Transformers of torchvision."""

    def num_blocks(self, network: VisionTransformer) -> int:
        """How many blocks there are."""
        return len(network.encoder.layers)

    def last_blocks(self, network: VisionTransformer, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        """The tokens after each of the last num blocks, each through the final norm, the last block last.

        Args:
            network: the ViT, of patch size P.
            pixels: (B, 3, side, side), normalised, of the side that the network was built for.
            num: 1 to num_blocks.
        """
        grid = (pixels.shape[-2] // network.patch_size, pixels.shape[-1] // network.patch_size)
        states = []
        tokens = _embedded(network, pixels)
        for block in network.encoder.layers:
            tokens = block(tokens)
            states.append(tokens)
        normed = [network.encoder.ln(state) for state in states[-num:]]
        return tuple(Tokens(state[:, 0], state[:, 1:], grid) for state in normed)

    def attention(self, network: VisionTransformer, pixels: Tensor) -> Tensor:
        """(B, heads, T, T) attention of the last block after its softmax; T counts class token and patches."""
        *before, last = network.encoder.layers
        tokens = _embedded(network, pixels)
        for block in before:
            tokens = block(tokens)
        normed = last.ln_1(tokens)
        weights: Tensor = last.self_attention(normed, normed, normed, average_attn_weights=False)[1]
        return weights


def _embedded(network: Any, pixels: Tensor) -> Tensor:
    """(B, 1 + N, D) class token and patches with their positions."""
    patches = network._process_input(pixels)
    cls = network.class_token.expand(len(patches), -1, -1)
    embedded: Tensor = network.encoder.dropout(torch.cat([cls, patches], dim=1) + network.encoder.pos_embedding)
    return embedded
