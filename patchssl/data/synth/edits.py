"""What happens to copies of an image: crops, and the hard edits of the `strong` set.

An edit takes a generator and (H, W, 3) uint8 RGB and gives another such image, of whatever size.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from patchssl.data.synth.canvas import FloatArray, Pixels, canvas, to_bytes
from patchssl.data.synth.randomness import choose, colour, ground_colours
from patchssl.data.synth.scenes import Light, Picture, Pose, background, draw_plain, photograph
from patchssl.data.synth.shapes import SHAPES
from patchssl.data.synth.warp import warp

Edit = Callable[[np.random.Generator, Pixels], Pixels]

MIN_SIDE_PX = 16
_LUMA = np.array([0.299, 0.587, 0.114])


def crop(rng: np.random.Generator, pixels: Pixels, percent_removed: int) -> Pixels:
    """Cut off the border.

    Args:
        rng: where the remaining part's place comes from: anywhere within the middle half of the places possible.
        pixels: (H, W, 3).
        percent_removed: share of the surface that is cut off, 0 to 100.

    Returns:
        (h, w, 3) with about the same proportions, its size kept, at least 16 pixels a side.
    """
    height, width = pixels.shape[:2]
    factor = math.sqrt(1 - percent_removed / 100)
    kept_height = min(height, max(MIN_SIDE_PX, round(height * factor)))
    kept_width = min(width, max(MIN_SIDE_PX, round(width * factor)))
    top = round((height - kept_height) * rng.uniform(0.25, 0.75))
    left = round((width - kept_width) * rng.uniform(0.25, 0.75))
    return pixels[top : top + kept_height, left : left + kept_width]


def blur(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """Blur by a Gaussian of 1.2 to 2.5 % of the short side, and add coarse noise."""
    radius = min(pixels.shape[:2]) * rng.uniform(0.012, 0.025)
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
    amount = rng.uniform(0.05, 0.15)
    return to_bytes(blurred / 255 + amount * (2 * rng.random(pixels.shape) - 1))


def tilt(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """Turn by 8 to 25 degrees and look at the result from the side; a plain colour fills the corners."""
    angle = math.radians(rng.uniform(8, 25)) * choose(rng, (-1, 1))
    lean = (rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25))
    return warp(pixels, angle=angle, lean=lean, zoom=rng.uniform(0.8, 1.0), fill=colour(rng))


def overlay(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """Cover parts by plain shapes and by lines of dashes that look like writing."""
    height, width = pixels.shape[:2]
    picture = Picture(canvas(height, width), pixels / 255)
    for _ in range(3):
        pose = Pose(
            x=rng.uniform(-0.9, 0.9) * picture.canvas.half_width,
            y=rng.uniform(-0.9, 0.9) * picture.canvas.half_height,
            area=rng.uniform(0.1, 0.35),
            angle=rng.uniform(0, 2 * math.pi),
        )
        picture = draw_plain(picture, choose(rng, tuple(SHAPES)), pose, colour(rng))
    return to_bytes(_write(rng, picture.colours))


def recolour(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """Change contrast, brightness curve and saturation strongly, down to black and white now and then."""
    colours = pixels / 255
    grey = (colours * _LUMA).sum(axis=-1, keepdims=True)
    colours = grey + (colours - grey) * choose(rng, (0.0, 0.3, 1.8))
    contrast = choose(rng, (rng.uniform(0.45, 0.6), rng.uniform(1.6, 2.2)))
    colours = np.clip(0.5 + (colours - 0.5) * contrast, 0, 1)
    # Squares and square roots round alike on every platform, powers do not.
    return to_bytes(colours * colours if rng.random() < 0.5 else np.sqrt(colours))


def print_and_scan(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """Print on tinted paper in a coarse screen and scan it: faded, shifted in colour, a little askew, uneven light."""
    height, width = pixels.shape[:2]
    paper, ink = rng.uniform(0.8, 1.0, 3), rng.uniform(0.05, 0.25, 3)
    faded = ink + pixels / 255 * (paper - ink)
    period_px = rng.uniform(2.5, 4.0)
    rows = np.abs(np.arange(height) / period_px % 1 - 0.5)[:, None, None]
    columns = np.abs(np.arange(width) / period_px % 1 - 0.5)[None, :, None]
    screened = Picture(canvas(height, width), faded + 0.3 * (rows + columns - 0.5))
    light = Light(rng.uniform(0.75, 1.0), rng.uniform(0.1, 0.3), rng.uniform(0, 2 * math.pi), 0.06)
    scanned = photograph(rng, screened, light)
    return warp(scanned, angle=math.radians(rng.uniform(-5, 5)), lean=(0.0, 0.0), zoom=0.92, fill=paper)


def insert(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """Paste the image, at 45 to 65 % of its side, somewhere into another picture of the same size."""
    height, width = pixels.shape[:2]
    factor = rng.uniform(0.45, 0.65)
    small_height, small_width = max(MIN_SIDE_PX, round(height * factor)), max(MIN_SIDE_PX, round(width * factor))
    small = np.asarray(Image.fromarray(pixels).resize((small_width, small_height), Image.Resampling.BICUBIC))
    around = to_bytes(background(rng, canvas(height, width), ground_colours(rng)).colours)
    top, left = round((height - small_height) * rng.random()), round((width - small_width) * rng.random())
    around[top : top + small_height, left : left + small_width] = small
    return around


STRONG_EDITS: dict[str, Edit] = {
    "blur": blur,
    "tilt": tilt,
    "overlay": overlay,
    "recolour": recolour,
    "print-and-scan": print_and_scan,
    "insert": insert,
}


def strong(rng: np.random.Generator, pixels: Pixels, num_edits: int = 2) -> Pixels:
    """Apply different hard edits in random order.

    Args:
        rng: where the choice and the edits' own numbers come from.
        pixels: (H, W, 3).
        num_edits: how many, at least 1 and at most all.

    Returns:
        (H, W, 3).
    """
    names = list(STRONG_EDITS)
    chosen = [names.pop(int(rng.random() * len(names))) for _ in range(num_edits)]
    for name in chosen:
        pixels = STRONG_EDITS[name](rng, pixels)
    return pixels


def _write(rng: np.random.Generator, colours: FloatArray) -> FloatArray:
    """Set two lines of dashes in one colour over (H, W, 3) colours."""
    height, width = colours.shape[:2]
    written, paint = colours.copy(), colour(rng)
    line_px = max(3, height // 16)
    top = round(rng.uniform(0.05, 0.8) * height)
    for line_top in (top, top + 2 * line_px):
        left = round(0.1 * width)
        while left < 0.9 * width:
            length = round(line_px * rng.uniform(0.4, 1.6)) + 1
            written[line_top : line_top + line_px, left : left + length] = paint
            left += length + max(1, line_px // 3)
    return written
