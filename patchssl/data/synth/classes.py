"""The class images: one object each, whose shape and pattern are its class and whose everything else is chance."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from patchssl.data.synth.canvas import Pixels, canvas
from patchssl.data.synth.difficulty import light_strength, obscure
from patchssl.data.synth.randomness import Part, choose, colour, generator, palette
from patchssl.data.synth.scenes import Pose, Thing, background, daylight, draw_plain, draw_thing, photograph
from patchssl.data.synth.shapes import CLASS_SHAPES, SHAPES
from patchssl.data.synth.textures import CLASS_PATTERNS

_FULL_AREA = 4.0
_PER_VAL_IMAGE = 5
_LARGEST_TURN = math.radians(12)
_LARGEST_SHIFT, _MOST_SHIFT = 0.08, 0.5

CLASSES: tuple[tuple[str, str], ...] = tuple((shape, pattern) for shape in CLASS_SHAPES for pattern in CLASS_PATTERNS)
MIN_IMAGES = 2 * len(CLASSES)


@dataclass(frozen=True, slots=True)
class ClassImage:
    """Which class and split an image belongs to.

    Attributes:
        index: its number in the data set.
        shape: the object's shape.
        pattern: the object's pattern.
        split: `train` or `val`.
    """

    index: int
    shape: str
    pattern: str
    split: str

    @property
    def relative_path(self) -> str:
        """`SPLIT/CLASS/NUMBER.png`."""
        return f"{self.split}/{self.shape}-{self.pattern}/{self.index:06d}.png"


def class_images(num_images: int) -> Iterator[ClassImage]:
    """Deal out images to classes in turn, and the second of every five of a class to `val`.

    Both splits are balanced to within one image, and an image keeps its class and split whatever `num_images` is.
    """
    for index in range(num_images):
        turn, which = divmod(index, len(CLASSES))
        shape, pattern = CLASSES[which]
        yield ClassImage(index, shape, pattern, "val" if turn % _PER_VAL_IMAGE == 1 else "train")


def draw_class_image(image: ClassImage, size_px: int, seed: int, difficulty: float = 1.0) -> Pixels:
    """Draw one class image.

    Everything but shape and pattern is drawn independently of the class: colours, background, position, rotation (up
    to 12 degrees, and the pattern as much again within the object), size (45 to 55 % of the image), light, noise, and
    now and then a small plain shape in a corner.

    Args:
        image: what to draw.
        size_px: its side.
        seed: the data set's seed.
        difficulty: factor of the rotation, the shift from the middle, the light's variation and the number of shapes
            in corners; above 1 other objects, lost contrast and noise cover the picture.

    Returns:
        (size_px, size_px, 3) RGB.
    """
    rng = generator(seed, Part.CLASS_IMAGE, image.index)
    colours = palette(rng)
    picture = background(rng, canvas(size_px, size_px), colours.ground)
    if rng.random() < 0.25 * difficulty:
        picture = draw_plain(picture, choose(rng, tuple(SHAPES)), _corner(rng), colour(rng))
    shift, turn = min(_MOST_SHIFT, _LARGEST_SHIFT * difficulty), min(math.pi, _LARGEST_TURN * difficulty)
    pose = Pose(
        x=rng.uniform(-shift, shift),
        y=rng.uniform(-shift, shift),
        area=_FULL_AREA * rng.uniform(0.45, 0.55),
        angle=rng.uniform(-turn, turn),
    )
    thing = Thing(
        shape=image.shape,
        pattern=image.pattern,
        paint=colours.paint,
        period=rng.uniform(0.34, 0.44) / math.sqrt(pose.area),
        slant=rng.uniform(-turn, turn),
        badge=None,
        badge_paint=colours.paint[0],
    )
    photographed = photograph(rng, draw_thing(picture, thing, pose), daylight(rng, light_strength(difficulty)))
    return obscure(photographed, difficulty, seed, Part.CLASS_IMAGE, image.index)


def _corner(rng: np.random.Generator) -> Pose:
    """Somewhere along a diagonal's end, on 1.5 to 3 % of the image."""
    return Pose(
        x=choose(rng, (-1, 1)) * rng.uniform(0.7, 0.9),
        y=choose(rng, (-1, 1)) * rng.uniform(0.7, 0.9),
        area=_FULL_AREA * rng.uniform(0.015, 0.03),
        angle=rng.uniform(0, 2 * math.pi),
    )
