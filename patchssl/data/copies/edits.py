"""The hard edits of the `strong` copies of a photograph, and a record of what each did.

An edit takes a generator, an RGB image and a strength, 1 being usual, and gives another RGB image, of whatever size,
and its parameters. Lengths are in pixels of the image that it was given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torchvision.transforms.v2 import functional

from patchssl.data.copies.drawing import INK, PAPER, Colour, any_colour, font, sentence
from patchssl.data.copies.screens import screenshot
from patchssl.data.synth.copies import draw_original
from patchssl.data.synth.randomness import choose

Parameters: TypeAlias = dict[str, float | int | str | list[int]]
Edit: TypeAlias = Callable[[np.random.Generator, Image.Image, float], tuple[Image.Image, Parameters]]

_PICTURE_PX = 256
_NUM_PICTURES = 2**31
_MOST_LINES = 12


@dataclass(frozen=True, slots=True)
class Applied:
    """An edit as it was applied.

    Attributes:
        name: a key of `STRONG_EDITS`.
        parameters: the numbers that were drawn for it.
    """

    name: str
    parameters: Parameters


def blur(rng: np.random.Generator, image: Image.Image, strength: float) -> tuple[Image.Image, Parameters]:
    """Blur by a Gaussian of 0.8 to 1.8 % of the short side."""
    radius_px = round(min(image.size) * rng.uniform(0.008, 0.018) * strength, 2)
    return image.filter(ImageFilter.GaussianBlur(radius_px)), {"radius_px": radius_px}


def rotate(rng: np.random.Generator, image: Image.Image, strength: float) -> tuple[Image.Image, Parameters]:
    """Turn by 6 to 30 degrees; the image grows, and a plain colour fills the corners."""
    degrees = round(choose(rng, (-1, 1)) * min(180.0, rng.uniform(6, 30) * strength), 1)
    turned = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=_fill(rng))
    return turned, {"degrees": degrees}


def perspective(rng: np.random.Generator, image: Image.Image, strength: float) -> tuple[Image.Image, Parameters]:
    """Pull the corners inwards, by up to 22 % of a side each; a plain colour fills what becomes free."""
    width, height = image.size
    pulled = rng.uniform(0.2, 1.0, (4, 2)) * min(0.45, 0.22 * strength) * (width, height)  # (4, 2)
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)])
    moved = np.rint(corners + pulled * [(1, 1), (-1, 1), (-1, -1), (1, -1)]).astype(int).tolist()
    leaned = functional.perspective(
        image, corners.tolist(), moved, interpolation=functional.InterpolationMode.BICUBIC, fill=list(_fill(rng))
    )
    return leaned, {"corners_px": [value for corner in moved for value in corner]}


def text(rng: np.random.Generator, image: Image.Image, strength: float) -> tuple[Image.Image, Parameters]:
    """Write 1 to 3 lines across the image, with an outline or on a bar."""
    width, height = image.size
    num_lines = min(_MOST_LINES, max(1, round(rng.uniform(0.6, 3.4) * strength)))
    size_px = max(8, round(min(image.size) * rng.uniform(0.08, 0.15)))
    paint, on_bar = any_colour(rng), bool(rng.random() < 0.4)
    behind = INK if sum(paint) > 384 else PAPER
    written, letters = image.copy(), font(size_px)
    draw = ImageDraw.Draw(written)
    for number in range(num_lines):
        line = sentence(rng, 2 + int(rng.random() * 4))
        # Each line in a band of its own, so that few of them do not hide each other.
        left, top = rng.uniform(-0.05, 0.35) * width, (number + rng.random()) / num_lines * (height - 1.3 * size_px)
        if on_bar:
            draw.rectangle((0, top, width, top + 1.3 * size_px), fill=behind)
        draw.text((left, top), line, fill=paint, font=letters, stroke_width=size_px // 16, stroke_fill=behind)
    return written, {"num_lines": num_lines, "size_px": size_px, "bar": int(on_bar)}


def picture(rng: np.random.Generator, image: Image.Image, strength: float) -> tuple[Image.Image, Parameters]:
    """Lay a drawn picture over 8 to 25 % of the image, now and then a little transparent."""
    share = round(min(0.85, rng.uniform(0.08, 0.25) * strength), 3)
    drawn = Image.fromarray(draw_original(int(rng.random() * _NUM_PICTURES), _PICTURE_PX, 0))
    width, height = (max(1, round(side * share**0.5)) for side in image.size)
    over = ImageOps.fit(drawn, (width, height), Image.Resampling.BICUBIC)
    place = (round(rng.random() * (image.width - width)), round(rng.random() * (image.height - height)))
    opacity = round(choose(rng, (1.0, rng.uniform(0.7, 1.0))), 2)
    covered = image.copy()
    covered.paste(over, place, Image.new("L", over.size, round(255 * opacity)))
    return covered, {"share": share, "opacity": opacity, "left_px": place[0], "top_px": place[1]}


def colour(rng: np.random.Generator, image: Image.Image, strength: float) -> tuple[Image.Image, Parameters]:
    """Change brightness curve, contrast, saturation and hue; black and white now and then."""
    gamma, contrast = (_factor(rng, most * strength) for most in (0.8, 0.6))
    saturation = 0.0 if rng.random() < 0.2 else _factor(rng, 1.5 * strength)
    hue = round(choose(rng, (-1, 1)) * min(0.5, rng.uniform(0.02, 0.1) * strength), 3)
    changed = functional.adjust_gamma(image, gamma)
    changed = functional.adjust_contrast(changed, contrast)
    changed = functional.adjust_saturation(changed, saturation)
    changed = functional.adjust_hue(changed, hue)
    return changed, {"gamma": gamma, "contrast": contrast, "saturation": saturation, "hue": hue}


STRONG_EDITS: dict[str, Edit] = {
    "blur": blur,
    "rotate": rotate,
    "perspective": perspective,
    "text": text,
    "picture": picture,
    "colour": colour,
    "screenshot": screenshot,
}


def strong(
    rng: np.random.Generator, image: Image.Image, difficulty: float = 1.0
) -> tuple[Image.Image, tuple[Applied, ...]]:
    """Apply different hard edits in random order.

    Args:
        rng: where the choice and the edits' own numbers come from.
        image: RGB.
        difficulty: strength of each edit; their number grows with it as well: at 1 one or two edits (40 % each) or
            three, from 2.8 on any number up to all.

    Returns:
        The copy, and the edits in the order in which they were applied.
    """
    num_edits = min(len(STRONG_EDITS), 1 + int(rng.random() * 2.5 * difficulty))
    names, applied = list(STRONG_EDITS), list[Applied]()
    for _ in range(num_edits):
        name = names.pop(int(rng.random() * len(names)))
        image, parameters = STRONG_EDITS[name](rng, image, difficulty)
        applied.append(Applied(name, parameters))
    return image, tuple(applied)


def _fill(rng: np.random.Generator) -> Colour:
    """White, black or any colour."""
    return choose(rng, (PAPER, INK, any_colour(rng)))


def _factor(rng: np.random.Generator, most: float) -> float:
    """A factor, or one over it, from 1 + a quarter of `most` to 1 + `most`."""
    factor = 1 + rng.uniform(0.25, 1.0) * most
    return round(choose(rng, (factor, 1 / factor)), 3)
