"""Random generators and choices for the drawings: each image has its own, found from the seed and its number."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np

from patchssl.data.synth.canvas import FloatArray

T = TypeVar("T")
_LUMA = np.array([0.299, 0.587, 0.114])
_MIN_CONTRAST = 0.3
_NUM_TRIALS = 64


class Part(IntEnum):
    """What random numbers are for; each has numbers of its own. The values are part of what a seed means."""

    CLASS_IMAGE = 0
    SCENE = 1
    CROP = 2
    STRONG = 3
    THING = 4
    VIEW = 5
    SIBLING = 6
    JPEG = 7
    OBSCURE = 8
    SAMPLE = 9


def generator(seed: int, part: Part, *key: int) -> np.random.Generator:
    """Make the generator of one image.

    Args:
        seed: the data set's seed, at least 0.
        part: what the numbers are for.
        key: which image and view they are for; other keys give independent numbers.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(part, *key))))


def choose(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Pick one of the items, each as likely as the others."""
    return items[int(rng.random() * len(items))]


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of one image, each (3,) RGB in [0, 1].

    Attributes:
        ground: the background's two colours.
        paint: the object's two colours.
    """

    ground: tuple[FloatArray, FloatArray]
    paint: tuple[FloatArray, FloatArray]


def colour(rng: np.random.Generator) -> FloatArray:
    """Draw a colour of any hue, from muted to vivid and from dark to bright, (3,) RGB in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.25, 0.95), rng.uniform(0.25, 1.0)))


def ground_colours(rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Draw two related colours: a muted one and a darker or brighter neighbour."""
    hue, saturation, value = rng.random(), rng.uniform(0.1, 0.6), rng.uniform(0.4, 0.85)
    first = colorsys.hsv_to_rgb(hue, saturation, value)
    neighbour = (hue + rng.uniform(-0.12, 0.12)) % 1
    second = colorsys.hsv_to_rgb(neighbour, saturation, value + rng.uniform(0.12, 0.22) * (-1 if value > 0.6 else 1))
    return np.array(first), np.array(second)


def paint_colours(rng: np.random.Generator, ground: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Draw two colours that stand out from each other in brightness and from the background in any way.

    Args:
        rng: where the colours come from.
        ground: the colours to stand out from.

    Returns:
        Two (3,) arrays: the first pair of at most 64 that stands out, or the one that comes closest to it.
    """
    middle = (ground[0] + ground[1]) / 2
    best, best_contrast = (colour(rng), colour(rng)), -1.0
    for _ in range(_NUM_TRIALS):
        pair = (colour(rng), colour(rng))
        apart = abs(float(((pair[0] - pair[1]) * _LUMA).sum()))
        outside = min(float(np.sqrt(((c - middle) ** 2).sum())) for c in pair)
        contrast = min(apart, outside)
        if contrast > best_contrast:
            best, best_contrast = pair, contrast
        if contrast >= _MIN_CONTRAST:
            break
    return best


def palette(rng: np.random.Generator) -> Palette:
    """Draw an image's colours, the object's standing out from the background's."""
    ground = ground_colours(rng)
    return Palette(ground, paint_colours(rng, ground))
