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

from patchssl.cells import check_cells, from_cells, to_cells
from patchssl.colour import ADJUSTMENTS, plan_jitter
from patchssl.draws import uniforms
from patchssl.errors import ConfigError
from patchssl.structs import SampleKeys, as_float
from patchssl.units import UnitParameters, apply_

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: How many uniform numbers a unit takes: whether and in which order to jitter, four amounts, whether to turn grey,
#: whether and how far to blur, whether to solarise.
NUM_UNIT_UNIFORMS = 10

_ORDERS = tuple(permutations(range(len(ADJUSTMENTS))))

# What a CPU core changes at a time, so that it stays in its caches from the first operation to the last.
_PIECE_BYTES = 3 << 20


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


@dataclass(frozen=True, slots=True)
class ViewNumbers:
    """The uniform numbers of M views, which decide all that happens to them.

    Those that choose the mode and those of each mode are apart, so a view's two modes are independent of each other and
    both stay what they are whatever the probability of patch mode.

    Attributes:
        seed: the run's seed.
        keys: the samples of the M views.
        stream: of random numbers, one for all or (M,), that nothing else draws from.
        drawn: (M, 1 + NUM_UNIT_UNIFORMS) for the mode and for image mode, on the CPU.
    """

    seed: int
    keys: SampleKeys
    stream: int | Tensor
    drawn: Tensor

    @classmethod
    def draw(cls, seed: int, keys: SampleKeys, stream: int | Tensor) -> "ViewNumbers":
        """Draw them on the CPU, so that no GPU is waited for to learn how many views do what."""
        return cls(seed, keys, stream, uniforms(seed, keys, stream, 1 + NUM_UNIT_UNIFORMS, device="cpu"))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: Tensor) -> "ViewNumbers":
        """Select views."""
        stream = self.stream if isinstance(self.stream, int) else self.stream[rows]
        return ViewNumbers(self.seed, self.keys[rows], stream, self.drawn[rows])

    def in_patch_mode(self, probability: float) -> Tensor:
        """Which views (M,) are in patch mode."""
        return self.drawn[:, 0] < probability

    def of_images(self) -> Tensor:
        """What image mode takes, (M, NUM_UNIT_UNIFORMS)."""
        return self.drawn[:, 1:]

    def of_cells(self, num_cells: int) -> Tensor:
        """What patch mode takes for all cells, view by view: (M * num_cells, NUM_UNIT_UNIFORMS)."""
        first = self.drawn.shape[1]
        num = first + NUM_UNIT_UNIFORMS * num_cells
        drawn = uniforms(self.seed, self.keys, self.stream, num, device="cpu")
        return drawn[:, first:].reshape(-1, NUM_UNIT_UNIFORMS)


def augment(
    pixels: Tensor, settings: PhotometricSettings, *, seed: int, keys: SampleKeys, stream: int | Tensor
) -> Tensor:
    """Augment views, each in patch or in image mode.

    What happens to a view follows from (seed, key, stream) alone: not from the rest of the batch, nor its order.

    Args:
        pixels: (M, 3, side, side) uint8, or float in [0, 1].
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
    if settings.patch_probability > 0:
        check_cells(pixels.shape[-1], settings.cell_px)
    numbers = ViewNumbers.draw(seed, keys, stream)
    patch_mode = numbers.in_patch_mode(settings.patch_probability)
    augmented = torch.empty(
        pixels.shape, dtype=pixels.dtype if pixels.is_floating_point() else torch.float32, device=pixels.device
    )
    fill(augmented, pixels, torch.arange(len(pixels)), numbers, patch_mode, settings)
    return augmented


def fill(
    augmented: Tensor,
    pixels: Tensor,
    rows: Tensor,
    numbers: ViewNumbers,
    patch_mode: Tensor,
    settings: PhotometricSettings,
    finish: Callable[[Tensor], Tensor] = lambda views: views,
) -> None:
    """Augment some views of a batch and write them to their places in another.

    On a CPU views go through all operations a few at a time, so that their pixels stay in the caches.

    Args:
        augmented: (N, 3, side, side) float, whose rows are overwritten.
        pixels: (N, 3, side, side) uint8, or float in [0, 1].
        rows: (M,) int64 on the CPU, which views.
        numbers: of the M views.
        patch_mode: (M,) bool on the CPU, which of them are augmented cell by cell.
        settings: for these views; its patch_probability is not looked at.
        finish: what is done to the augmented views last; it may change them in place.
    """
    cell_px = settings.cell_px
    for cellwise in (False, True):
        chosen = (patch_mode == cellwise).nonzero().squeeze(-1)
        if not len(chosen):
            continue
        num_cells = (pixels.shape[-1] // cell_px) ** 2 if cellwise else 1
        ours = numbers[chosen]
        parameters = _parameters(ours.of_cells(num_cells) if cellwise else ours.of_images(), settings)
        num_views = _views_at_a_time(augmented)
        for first, places in enumerate(chosen.split(num_views)):
            of_these = parameters[first * num_views * num_cells :][: len(places) * num_cells]
            order = of_these.sorting()
            units, to = of_these[order], rows[places] if cellwise else rows[places[order]]
            to = to.to(pixels.device, non_blocking=True)
            views = pixels.index_select(0, to)
            views = _cellwise(views, units, order, settings) if cellwise else _apply(as_float(views), units, settings)
            augmented.index_copy_(0, to, finish(views))


def _cellwise(views: Tensor, parameters: UnitParameters, order: Tensor, settings: PhotometricSettings) -> Tensor:
    """Augment the cells of views (M, 3, side, side), with parameters of their cells in the order given."""
    cells = to_cells(views, settings.cell_px).index_select(0, order.to(views.device, non_blocking=True))
    changed = _apply(as_float(cells), parameters, settings)
    back = order.argsort().to(views.device, non_blocking=True)
    return from_cells(changed.index_select(0, back), views.shape[-1])


def _apply(units: Tensor, parameters: UnitParameters, settings: PhotometricSettings) -> Tensor:
    radius_px, threshold = math.ceil(3 * settings.blur_sigma[1]), settings.solarise_threshold
    return apply_(units, parameters, blur_radius_px=radius_px, solarise_threshold=threshold)


def _views_at_a_time(augmented: Tensor) -> int:
    if augmented.device.type != "cpu":
        return max(1, len(augmented))
    return max(1, _PIECE_BYTES * torch.get_num_threads() // (augmented[:1].nbytes or 1))


def _parameters(drawn: Tensor, settings: PhotometricSettings) -> UnitParameters:
    """What happens to units whose numbers (M, NUM_UNIT_UNIFORMS) were drawn."""
    jittered, order, *amounts, greyed, blurred, sigma, solarised = drawn.unbind(1)
    orders = torch.tensor(_ORDERS)[(order * len(_ORDERS)).long()]
    blends, turn, num_before = plan_jitter(_amounts(torch.stack(amounts, dim=1), settings), orders)
    least, greatest = settings.blur_sigma
    return UnitParameters(
        blends=blends,
        turn=turn,
        num_before=num_before.where(jittered < settings.jitter_probability, -1),
        greyed=greyed < settings.greyscale_probability,
        blurred=blurred < settings.blur_probability,
        sigma=least + sigma * (greatest - least),
        solarised=solarised < settings.solarise_probability,
    )


def _amounts(drawn: Tensor, settings: PhotometricSettings) -> Tensor:
    """Factors of brightness, contrast, saturation and turn of the hue (M, 4) from uniform numbers (M, 4)."""
    spreads = (settings.brightness, settings.contrast, settings.saturation)
    low = drawn.new_tensor([*(max(0.0, 1 - spread) for spread in spreads), -settings.hue])
    high = drawn.new_tensor([*(1 + spread for spread in spreads), settings.hue])
    return low + drawn * (high - low)


def normalise(pixels: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Shift and scale the channels of (..., 3, h, w) to the numbers that a network expects, by default ImageNet's."""
    return normalise_(pixels.clone(), mean, std)


def normalise_(pixels: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """The same in place."""
    values = torch.tensor([mean, std], dtype=pixels.dtype).to(pixels.device, non_blocking=True)
    shift, scale = values[..., None, None]
    return pixels.sub_(shift).div_(scale)
