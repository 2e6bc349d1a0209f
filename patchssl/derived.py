"""What the configuration leaves open: learning rate, momentum of the teacher, warm-up, and the size of cached images.

The first three are DINO's own at its settings (Caron et al., 2021: ViT-S, batches of 1,024, 100 epochs of ImageNet),
carried over to other batch sizes, widths and lengths.
"""

import math
from dataclasses import dataclass

import torch

from patchssl.backbones.vit import build_vit
from patchssl.config import Config

_DINO_BATCH = 1024
_DINO_WIDTH = 384
_DINO_RATE = 2e-3
_DINO_MOMENTUM = 0.996

_LARGEST_RATE = 4e-3
_SMALLEST_MOMENTUM = 0.9
_HORIZONS_OF_A_RUN = 25

_WARMUP = 0.1
_WARMUP_EPOCHS = 10
_WARMUP_STEPS = 1000


@dataclass(frozen=True)
class Derived:
    """A configuration without open values.

    Attributes:
        config: all of train's values are given, and with a cache of images their size.
        told: a line for each value that was derived, with its derivation.
    """

    config: Config
    told: tuple[str, ...]


@dataclass(frozen=True)
class DerivedValue:
    """A value, rounded to three digits, and its arithmetic in words."""

    value: float
    derivation: str


def derive(config: Config, num_images: int) -> Derived:
    """Fill what a configuration leaves open; what is given stays.

    Args:
        config: null values of `train` are open, and with `data.cache_images` also `data.cache_side`.
        num_images: of the source.

    Raises:
        ConfigError: the learning rate is open and the network, whose width it depends on, cannot be built.
    """
    train = config.train
    num_steps = train.num_steps(num_images)
    found: dict[str, DerivedValue] = {}
    if train.learning_rate is None:
        found["learning_rate"] = learning_rate(train.batch_size, _width(config))
    if train.ema_momentum is None:
        found["ema_momentum"] = ema_momentum(train.batch_size, num_steps)
    if train.warmup_fraction is None:
        found["warmup_fraction"] = warmup_fraction(num_steps, num_images / train.batch_size)
    values = {name: derived.value for name, derived in found.items()}
    told = tuple(f"train.{name} = {derived.value:g}: {derived.derivation}" for name, derived in found.items())
    data = config.data
    if data.cache_images is not None and data.cache_side is None:
        side = cache_side(config.views.global_size, config.views.global_scale[0])
        data = data.model_copy(update={"cache_side": int(side.value)})
        told = (*told, f"data.cache_side = {data.cache_side}: {side.derivation}")
    return Derived(config.model_copy(update={"train": train.model_copy(update=values), "data": data}), told)


def learning_rate(batch_size: int, width: int) -> DerivedValue:
    """The peak learning rate for AdamW.

    It grows with the square root of the batch size, since the noise of Adam's steps does (Malladi et al., 2022), and
    not linearly as DINO's rule: both agree at 1,024 images, where that rule was used. Networks narrower than ViT-S take
    a rate that grows with 1 / width (Yang et al., 2022); for wider ones ViT-S's stays, as DINO trains ViT-B with no
    less.

    Args:
        batch_size: images in a step.
        width: D, of the tokens.
    """
    value = _DINO_RATE * math.sqrt(batch_size / _DINO_BATCH) * max(1.0, _DINO_WIDTH / width)
    derivation = f"DINO's {_DINO_RATE:g} at a batch of {_DINO_BATCH:,}, times sqrt({batch_size:,} / {_DINO_BATCH:,})"
    if width < _DINO_WIDTH:
        derivation += f", times {_DINO_WIDTH} / {width} for a network narrower than ViT-S"
    if value > _LARGEST_RATE:
        derivation += f", {value:.3g}, but at most {_LARGEST_RATE:g}"
    return DerivedValue(_rounded(min(value, _LARGEST_RATE)), derivation)


def ema_momentum(batch_size: int, num_steps: int) -> DerivedValue:
    """The teacher's momentum at the first step.

    With batches k times as large, momentum ** k lets the teacher look back over as many images (Busbridge et al.,
    2023). It looks back over about 1 / (1 - momentum) steps, which have to be a small part of the run, or it would end
    near the fresh weights that it began with; and over 10 at least: with a momentum of 0.9 BYOL still learns nearly as
    well, without a moving mean hardly at all (Grill et al., 2020, table 5).

    Args:
        batch_size: images in a step.
        num_steps: of the whole run.
    """
    scaled = _DINO_MOMENTUM ** (batch_size / _DINO_BATCH)
    longest = 1 - _HORIZONS_OF_A_RUN / num_steps
    derivation = (
        f"DINO's {_DINO_MOMENTUM:g} at a batch of {_DINO_BATCH:,}, to the power of {batch_size:,} / {_DINO_BATCH:,}"
    )
    if longest < scaled:
        derivation += (
            f", {_momentum(scaled):g}, but at most 1 - {_HORIZONS_OF_A_RUN} / {num_steps:,}, "
            f"with which the teacher looks back over 1 / {_HORIZONS_OF_A_RUN} of the steps"
        )
    if min(scaled, longest) < _SMALLEST_MOMENTUM:
        derivation += f", and at least {_SMALLEST_MOMENTUM:g}, over {1 / (1 - _SMALLEST_MOMENTUM):.0f} steps"
    return DerivedValue(_momentum(max(_SMALLEST_MOMENTUM, min(scaled, longest))), derivation)


def warmup_fraction(num_steps: int, steps_per_epoch: float) -> DerivedValue:
    """The part of all steps over which the learning rate rises.

    DINO's 10 of 100 epochs; longer runs keep to 10 epochs, as its 800 epochs do, or where the data are small to as many
    steps as AdamW's second moments take to settle.

    Args:
        num_steps: of the whole run.
        steps_per_epoch: passes through the data, fractions meant.
    """
    longest = max(_WARMUP_EPOCHS * steps_per_epoch, _WARMUP_STEPS)
    if _WARMUP * num_steps <= longest:
        return DerivedValue(_WARMUP, f"DINO's 10 of 100 epochs, {round(_WARMUP * num_steps):,} of {num_steps:,} steps")
    derivation = (
        f"{round(longest):,} of {num_steps:,} steps, the longer of {_WARMUP_EPOCHS} epochs "
        f"({round(_WARMUP_EPOCHS * steps_per_epoch):,} steps) and {_WARMUP_STEPS:,} steps, "
        f"as {_WARMUP:g} of all would be {round(_WARMUP * num_steps):,}"
    )
    return DerivedValue(_rounded(longest / num_steps), derivation)


def cache_side(global_size: int, least_scale: float) -> DerivedValue:
    """The shorter side to which images are shrunk that are kept: the least global view still has a pixel for each.

    Args:
        global_size: side of a global view, px.
        least_scale: area of the least one, as a fraction of the image's, which is taken to be square.
    """
    # Roundings of the root are no reason for another pixel.
    value = math.ceil(round(global_size / math.sqrt(least_scale), 6))
    derivation = f"views.global_size {global_size} px / sqrt({least_scale:g}), the least of views.global_scale"
    return DerivedValue(value, derivation)


def _width(config: Config) -> int:
    if config.model.width is not None:
        return config.model.width
    # Without memory or random numbers: what is drawn for weights that nobody uses would change those of the run.
    with torch.device("meta"):
        return build_vit(config.model, config.views.global_size).num_features


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _momentum(value: float) -> float:
    """Rounded in its distance from 1, which is what counts."""
    return round(1 - _rounded(1 - value), 12)
