"""Backbones without anything learned, which show how far the pixels alone go."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchssl.backbones.options import LoadOptions
from patchssl.backbones.preprocess import Preprocess
from patchssl.backbones.protocol import Backbone
from patchssl.backbones.spec import ModelSpec
from patchssl.errors import ConfigError
from patchssl.structs import Tokens

PREFIX = "floor:"
FAMILY = "floor"
# Name → the architecture's name, and the side of the grid to which a crop is averaged.
FLOORS = {"mean-colour": ("mean-colour", 1), "raw-pixels": ("raw-pixels-16x16", 16)}

_DINO = Preprocess(image_px=224, resize_px=256)


class AveragedPixels(nn.Module):
    """A crop averaged down to a grid of side x side cells."""

    side: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        # In the state, so that the hash of the weights tells one floor from another.
        self.register_buffer("side", torch.tensor(side))

    def forward(self, pixels: Tensor) -> Tensor:
        """Average each cell; where the sides do not divide, cells overlap by up to one pixel.

        Args:
            pixels: (B, 3, h, w).

        Returns:
            (B, 3 * side * side), channel by channel, each row-major.
        """
        return functional.adaptive_avg_pool2d(pixels, int(self.side)).flatten(1)


class FloorReader:
    """Gives the averaged pixels as class token and as the only patch."""

    def num_blocks(self, network: AveragedPixels) -> int:
        """One: there are no blocks to choose from."""
        return 1

    def last_blocks(self, network: AveragedPixels, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        """The averaged pixels both as cls (B, D) and as patches (B, 1, D)."""
        values = network(pixels)
        return (Tokens(values, values[:, None], (1, 1)),)

    def attention(self, network: AveragedPixels, pixels: Tensor) -> Tensor:
        """Refuse: averages attend to nothing.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("averaged pixels have no attention; choose a Vision Transformer")


def load_floor(spec: ModelSpec, options: LoadOptions) -> Backbone:
    """Build the floor that `floor:NAME` names.

    `floor:mean-colour` is the mean of each channel of the crop, D = 3; `floor:raw-pixels` the crop averaged down to
    16 x 16 px, D = 768. Values are normalised by the mean and standard deviation of ImageNet.

    Args:
        spec: of kind `floor`, one of FLOORS.
        options: none of which has a meaning here, but for the seed, which changes nothing.

    Raises:
        ConfigError: there is no floor of that name, or a file's options are given.
    """
    if spec.name not in FLOORS:
        known = ", ".join(PREFIX + floor for floor in FLOORS)
        raise ConfigError(f"there is no floor {spec.text!r}; allowed: {known}")
    options.refuse(
        "checkpoint_key", "arch", "num_heads", "allow_partial", spec=spec.text, reason="a floor comes from no file"
    )
    arch, side = FLOORS[spec.name]
    return Backbone.of(
        AveragedPixels(side),
        FloorReader(),
        spec=spec.text,
        family=FAMILY,
        arch=arch,
        dim=3 * side * side,
        patch_px=1,
        preprocess=_DINO,
    )


def floor_preprocess(preprocess: Preprocess) -> Preprocess:
    """The crops that another backbone sees, in the normalisation of the floors, so that the two may be compared."""
    return replace(preprocess, mean=_DINO.mean, std=_DINO.std)
