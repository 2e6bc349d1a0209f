"""How hard the images are: 1 is usual, and the larger, the nearer every score comes to that of guessing."""

import math

from patchssl.data.synth.canvas import Pixels, canvas, to_bytes
from patchssl.data.synth.randomness import Part, colour, generator, ground_colours, paint_colours
from patchssl.data.synth.scenes import Picture, Pose, any_thing, draw_thing
from patchssl.errors import DataError

MAX_DIFFICULTY = 100.0
_THINGS, _MOST_THINGS = 2, 20
_NOISE = 0.05
_MOST_LIGHT = 2.0


def check_difficulty(difficulty: float) -> None:
    """Raise DataError unless it is above 0 and at most 100."""
    if not 0 < difficulty <= MAX_DIFFICULTY:
        raise DataError(
            f"The difficulty is {difficulty:g}; give a number above 0 and up to {MAX_DIFFICULTY:g}: 1 is usual, larger "
            "is harder."
        )


def light_strength(difficulty: float) -> float:
    """How much the light varies; up to twice as much as usual, beyond which there would be only black and white."""
    return min(difficulty, _MOST_LIGHT)


def obscure(pixels: Pixels, difficulty: float, seed: int, *key: int) -> Pixels:
    """Lay other objects over a finished picture, take contrast from it and add noise, all the more the harder it is.

    Args:
        pixels: (H, W, 3).
        difficulty: up to 1 the picture stays as it is. Beyond, for each 1 more, 2 objects (20 at most in all) of 1 to
            10 % of a square picture each, and noise of up to 0.05; the contrast is divided by the difficulty. What
            covers the picture at one difficulty covers it at all larger ones.
        seed: the data set's seed.
        key: which image it is.

    Returns:
        (H, W, 3).
    """
    beyond = difficulty - 1
    if beyond <= 0:
        return pixels
    rng = generator(seed, Part.OBSCURE, *key)
    noise = 2 * rng.random(pixels.shape) - 1  # before the objects, so that it is the same whatever their number
    picture = Picture(canvas(*pixels.shape[:2]), pixels / 255)
    for _ in range(min(_MOST_THINGS, round(_THINGS * beyond))):
        pose = Pose(
            x=rng.uniform(-1, 1) * picture.canvas.half_width,
            y=rng.uniform(-1, 1) * picture.canvas.half_height,
            area=rng.uniform(0.04, 0.4),
            angle=rng.uniform(0, 2 * math.pi),
        )
        thing = any_thing(rng, paint_colours(rng, ground_colours(rng)), colour(rng))
        picture = draw_thing(picture, thing, pose)
    return to_bytes(0.5 + (picture.colours - 0.5) / difficulty + _NOISE * beyond * noise)
