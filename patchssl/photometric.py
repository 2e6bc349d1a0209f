"""Photometric augmentation, with parameters drawn per view or per cell of a view.

What gets parameters of its own is called a unit: in image mode a view, as in DINO (Caron et al., ICCV 2021), in patch
mode a square cell of one, so that "each patch is individually augmented, independent from other patches within the same
view" (PW-Self, arXiv 2310.18651, abstract). Which operations a cell undergoes, how probably and at what size is our
own design: the authors' code has no patch mode. Cells are cut out and treated like images of their own, blur included,
so nothing of a cell reaches its neighbours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from patchssl.blur import gaussian_blur
from patchssl.colour import ADJUSTMENTS, jitter, solarise, to_greyscale
from patchssl.draws import uniforms
from patchssl.errors import ConfigError
from patchssl.structs import SampleKeys

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: How many uniform numbers a unit takes: whether and in which order to jitter, four amounts, whether to turn grey,
#: whether and how far to blur, whether to solarise.
NUM_UNIT_UNIFORMS = 10

_ORDERS = tuple(permutations(range(len(ADJUSTMENTS))))


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotometricSettings:
    """How views of one kind are augmented. What has a default is alike for all kinds of DINO's views.

    Attributes:
        blur_probability: of blurring a unit.
        solarise_probability: of solarising a unit.
        jitter_probability: of jittering the colours of a unit.
        greyscale_probability: of turning a unit grey.
        brightness: factors are uniform in 1 ± this, not below 0.
        contrast: likewise.
        saturation: likewise.
        hue: turns are uniform in ± this, in parts of a full turn, at most 0.5.
        blur_sigma: least and greatest standard deviation of a blur, px of the view.
        solarise_threshold: pixels in [0, 1] at or above it are inverted.
        patch_probability: of a view being in patch mode; 0 is DINO's augmentation.
        cell_px: side of a cell in patch mode, a divisor of the view's side.
    """

    blur_probability: float
    solarise_probability: float
    jitter_probability: float = 0.8
    greyscale_probability: float = 0.2
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_threshold: float = 128 / 255
    patch_probability: float = 0.0
    cell_px: int = 16

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        for name in ("blur", "solarise", "jitter", "greyscale", "patch"):
            probability = getattr(self, f"{name}_probability")
            if not 0 <= probability <= 1:
                raise ConfigError(f"{name}_probability is {probability}; give a probability from 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a number from 0, for factors of 1 ± it")
        if not 0 <= self.hue <= 0.5:
            raise ConfigError(f"hue is {self.hue}; give a number from 0 to 0.5, in parts of a full turn")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1] < math.inf:
            raise ConfigError(f"blur_sigma is {self.blur_sigma}; give 0 < least <= greatest")
        if self.cell_px < 1:
            raise ConfigError(f"cell_px is {self.cell_px}; give at least 1, best a multiple of the ViT's patch side")


#: DINO's augmentation of its three kinds of views.
DINO = {
    "first_global": PhotometricSettings(blur_probability=1.0, solarise_probability=0.0),
    "second_global": PhotometricSettings(blur_probability=0.1, solarise_probability=0.2),
    "local": PhotometricSettings(blur_probability=0.5, solarise_probability=0.0),
}


def augment(
    pixels: Tensor, settings: PhotometricSettings, *, seed: int, keys: SampleKeys, stream: int | Tensor
) -> Tensor:
    """Augment views, each in patch or in image mode.

    What happens to a view follows from (seed, key, stream) alone: not from the rest of the batch, nor its order.

    Args:
        pixels: (M, 3, side, side) float in [0, 1].
        settings: for these views.
        seed: the run's seed.
        keys: the samples of the M views.
        stream: of random numbers, one for all or (M,), that nothing else draws from.

    Returns:
        (M, 3, side, side) in [0, 1].

    Raises:
        ConfigError: patch mode is possible and cells would not fill the view.
        ValueError: there are not as many keys as views.
    """
    if len(keys) != len(pixels):
        raise ValueError(f"{len(keys)} keys for {len(pixels)} views; give the key of each view's sample")
    drawn = uniforms(seed, keys, stream, 1 + NUM_UNIT_UNIFORMS, device=pixels.device)
    patch_mode = drawn[:, 0] < settings.patch_probability
    augmented = pixels.clone()
    rows = _rows(~patch_mode)
    augmented.index_copy_(0, rows, _apply(pixels.index_select(0, rows), drawn[rows, 1:], settings))
    if settings.patch_probability > 0:
        rows = _rows(patch_mode)
        cells = to_cells(pixels.index_select(0, rows), settings.cell_px)
        # The numbers after those of image mode, so that both modes are independent of each other.
        first, each = drawn.shape[1], NUM_UNIT_UNIFORMS * (pixels.shape[-1] // settings.cell_px) ** 2
        here = rows.to(keys.index.device)
        streams = stream if isinstance(stream, int) else stream[rows.to(stream.device)]
        drawn = uniforms(seed, keys[here], streams, first + each, device=pixels.device)[:, first:]
        cells = _apply(cells, drawn.reshape(-1, NUM_UNIT_UNIFORMS), settings)
        augmented.index_copy_(0, rows, from_cells(cells, pixels.shape[-1]))
    return augmented


def normalise(pixels: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Shift and scale the channels of (..., 3, h, w) to the numbers that a network expects, by default ImageNet's."""
    shift, scale = (torch.tensor(values, dtype=pixels.dtype, device=pixels.device) for values in (mean, std))
    return (pixels - shift[:, None, None]).div_(scale[:, None, None])


def to_cells(pixels: Tensor, cell_px: int) -> Tensor:
    """Cut square views into square cells.

    Args:
        pixels: (M, C, side, side).
        cell_px: side of a cell.

    Returns:
        (M * cells, C, cell_px, cell_px), the cells of a view row-major.

    Raises:
        ConfigError: the cells would not fill the view.
    """
    side = pixels.shape[-1]
    if side % cell_px:
        raise ConfigError(f"cells of {cell_px} px do not fill views of {side} px; take a divisor of {side}")
    num = side // cell_px
    cells = pixels.reshape(*pixels.shape[:2], num, cell_px, num, cell_px)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, pixels.shape[1], cell_px, cell_px)


def from_cells(cells: Tensor, side: int) -> Tensor:
    """Put the cells (M * cells, C, cell_px, cell_px) of `to_cells` together again, to (M, C, side, side)."""
    num_channels, cell_px = cells.shape[1:3]
    num = side // cell_px
    pixels = cells.reshape(len(cells) // num**2, num, num, num_channels, cell_px, cell_px)
    return pixels.permute(0, 3, 1, 4, 2, 5).reshape(-1, num_channels, side, side)


def _apply(units: Tensor, drawn: Tensor, settings: PhotometricSettings) -> Tensor:
    """Augment the units (M, 3, h, w), in place, as the numbers drawn for them (M, NUM_UNIT_UNIFORMS) say."""
    drawn = drawn.to(units.dtype)
    jittered, order, *amounts, greyed, blurred, sigma, solarised = drawn.unbind(1)
    amount = _amounts(torch.stack(amounts, dim=1), settings)
    orders = torch.tensor(_ORDERS, device=units.device)[(order * len(_ORDERS)).long()]
    least, greatest = settings.blur_sigma
    sigma = least + sigma * (greatest - least)
    radius_px = math.ceil(3 * greatest)

    _change(units, jittered < settings.jitter_probability, lambda some, rows: jitter(some, amount[rows], orders[rows]))
    _change(units, greyed < settings.greyscale_probability, lambda some, _: to_greyscale(some))
    _change(units, blurred < settings.blur_probability, lambda some, rows: gaussian_blur(some, sigma[rows], radius_px))
    _change(
        units, solarised < settings.solarise_probability, lambda some, _: solarise(some, settings.solarise_threshold)
    )
    return units


def _amounts(drawn: Tensor, settings: PhotometricSettings) -> Tensor:
    """Factors of brightness, contrast, saturation and turn of the hue (M, 4) from uniform numbers (M, 4)."""
    spreads = (settings.brightness, settings.contrast, settings.saturation)
    low = drawn.new_tensor([*(max(0.0, 1 - spread) for spread in spreads), -settings.hue])
    high = drawn.new_tensor([*(1 + spread for spread in spreads), settings.hue])
    return low + drawn * (high - low)


def _change(units: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replace the chosen units by `change(units[rows], rows)`, in place."""
    rows = _rows(chosen)
    if len(rows):
        units.index_copy_(0, rows, change(units.index_select(0, rows), rows))


def _rows(chosen: Tensor) -> Tensor:
    return chosen.nonzero().squeeze(-1)
