"""Letters, words and colours for edits that draw on a photograph."""

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from PIL import ImageFont

from patchssl.data.synth.canvas import to_bytes
from patchssl.data.synth.randomness import choose, colour

Colour: TypeAlias = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (0, 0, 0)

_WORDS = """
a about again all always and another around at autumn before best bright by city clear coast come corner day
early every evening field find first for forest free friends from garden good green harbour hello here hill home
house how in just lake last late left light little long look made market more morning mountain my never new next
night north now of old on one open our out over park place quiet rain river road sale see share side slow small
south spring street summer sun the there time to today tomorrow town tree under up visit walk water way we
weather week what where why wind window winter with world year you young
"""


def any_colour(rng: np.random.Generator) -> Colour:
    """Draw a colour from muted to vivid and from dark to bright, 0 to 255."""
    red, green, blue = to_bytes(colour(rng)).tolist()
    return red, green, blue


def sentence(rng: np.random.Generator, num_words: int) -> str:
    """Draw words, the first with a capital letter."""
    return " ".join(choose(rng, _words()) for _ in range(num_words)).capitalize()


@lru_cache(maxsize=1)
def _words() -> tuple[str, ...]:
    return tuple(_WORDS.split())


@lru_cache(maxsize=64)
def font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The letters that come with Pillow."""
    return ImageFont.load_default(size_px)
