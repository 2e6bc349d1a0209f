"""Originals and their copies, in the layout of the Copydays data set.

Jégou, Douze, Schmid: "Hamming embedding and weak geometric consistency for large scale image search", ECCV 2008,
whose benchmark has 157 originals, 9 JPEG qualities, 9 crops and 1 to 6 strong edits of each.
"""

import math
from collections.abc import Iterator

from patchssl.data.synth.canvas import Pixels, canvas
from patchssl.data.synth.difficulty import light_strength, obscure
from patchssl.data.synth.edits import STRONG_EDITS, crop, strong
from patchssl.data.synth.files import Drawing
from patchssl.data.synth.randomness import Part, colour, generator, ground_colours, paint_colours
from patchssl.data.synth.scenes import Pose, any_thing, background, daylight, draw_thing, photograph

_MIN_ORIGINALS, _MAX_ORIGINALS = 10, 157
_CLASS_IMAGES_PER_ORIGINAL = 20
_FIRST_NUMBER = 2000
_ORIGINAL_QUALITY = 92

JPEG_QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)
CROP_PERCENTS = (10, 15, 20, 30, 40, 50, 60, 70, 80)


def num_originals(num_images: int) -> int:
    """One original per 20 class images, at least 10 and at most 157 (the number in Copydays)."""
    return min(_MAX_ORIGINALS, max(_MIN_ORIGINALS, num_images // _CLASS_IMAGES_PER_ORIGINAL))


def num_strong(original: int) -> int:
    """How many strong copies an original has: 1 and 2 in turn."""
    return 1 + original % 2


def draw_original(original: int, long_side_px: int, seed: int, difficulty: float = 1.0) -> Pixels:
    """Draw a scene of 4 to 6 different objects.

    Args:
        original: its number.
        long_side_px: the width; every third image is upright, and has it as its height.
        seed: the data set's seed.
        difficulty: how far the light varies; above 1 other objects, lost contrast and noise cover the picture.

    Returns:
        (H, W, 3) RGB with sides 4:3 or 3:4.
    """
    rng = generator(seed, Part.SCENE, original)
    short_side_px = round(long_side_px * 0.75)
    area = canvas(long_side_px, short_side_px) if original % 3 == 2 else canvas(short_side_px, long_side_px)
    ground = ground_colours(rng)
    picture = background(rng, area, ground)
    num_things = 4 + int(rng.random() * 3)
    turn = rng.random()
    for place in range(num_things):
        # Around the middle, so that objects overlap a little and none hides another.
        around = 2 * math.pi * (turn + (place + rng.uniform(-0.2, 0.2)) / num_things)
        pose = Pose(
            x=math.cos(around) * rng.uniform(0.45, 0.75) * area.half_width,
            y=math.sin(around) * rng.uniform(0.45, 0.75) * area.half_height,
            area=rng.uniform(0.35, 0.75),
            angle=rng.uniform(0, 2 * math.pi),
        )
        picture = draw_thing(picture, any_thing(rng, paint_colours(rng, ground), colour(rng)), pose)
    photographed = photograph(rng, picture, daylight(rng, light_strength(difficulty)))
    return obscure(photographed, difficulty, seed, Part.SCENE, original)


def copydays_drawings(num_images: int, long_side_px: int, seed: int, difficulty: float = 1.0) -> Iterator[Drawing]:
    """Draw the originals and all their copies.

    The sorted names of `jpegqual/Q` and `crops/P` are those of `original`; a strong copy shares its first four
    characters with its original and with no other. At other difficulties than 1 the strong copies have undergone more
    edits or fewer than two; above 1 all copies are obscured, each by something else.
    """
    for original in range(num_originals(num_images)):
        number = f"{_FIRST_NUMBER + original:04d}"
        pixels = draw_original(original, long_side_px, seed, difficulty)
        yield Drawing(f"original/{number}00.jpg", pixels, _ORIGINAL_QUALITY)
        for quality in JPEG_QUALITIES:
            obscured = obscure(pixels, difficulty, seed, Part.JPEG, original, quality)
            yield Drawing(f"jpegqual/{quality}/{number}00.jpg", obscured, quality)
        for percent in CROP_PERCENTS:
            cropped = crop(generator(seed, Part.CROP, original, percent), pixels, percent)
            obscured = obscure(cropped, difficulty, seed, Part.CROP, original, percent)
            yield Drawing(f"crops/{percent}/{number}00.jpg", obscured, _ORIGINAL_QUALITY)
        for copy in range(num_strong(original)):
            edited = strong(generator(seed, Part.STRONG, original, copy), pixels, _num_edits(difficulty))
            obscured = obscure(edited, difficulty, seed, Part.STRONG, original, copy)
            yield Drawing(f"strong/{number}{copy + 1:02d}.jpg", obscured, _ORIGINAL_QUALITY)


def num_drawings(num_images: int) -> int:
    """How many files `copydays_drawings` draws."""
    originals = range(num_originals(num_images))
    return len(originals) * (1 + len(JPEG_QUALITIES) + len(CROP_PERCENTS)) + sum(map(num_strong, originals))


def _num_edits(difficulty: float) -> int:
    return min(len(STRONG_EDITS), max(1, round(2 * difficulty)))
