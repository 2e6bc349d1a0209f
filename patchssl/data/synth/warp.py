"""Rotation and perspective of an image, sampled bilinearly."""

import math

import numpy as np

from patchssl.data.synth.canvas import FloatArray, Pixels, canvas, to_bytes


def warp(pixels: Pixels, *, angle: float, lean: tuple[float, float], zoom: float, fill: FloatArray) -> Pixels:
    """Turn an image around its middle and look at it from the side.

    Args:
        pixels: (H, W, 3).
        angle: rotation in radians, clockwise on the screen.
        lean: perspective across and along: how much farther away an edge is than the middle, -0.5 to 0.5.
        zoom: size of the image in the result, 1 keeps it.
        fill: (3,) RGB in [0, 1] for what lies outside the image.

    Returns:
        (H, W, 3). With angle 0, lean (0, 0) and zoom 1 the image itself.
    """
    height, width = pixels.shape[:2]
    area = canvas(height, width)
    # The inverse way: for every pixel of the result, the place in the source.
    depth = (1 + lean[0] * area.x / area.half_width + lean[1] * area.y / area.half_height) / zoom
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = (area.x * cos + area.y * sin) * depth, (area.y * cos - area.x * sin) * depth
    return _sample(pixels, (y + area.half_height) / area.pixel - 0.5, (x + area.half_width) / area.pixel - 0.5, fill)


def _sample(pixels: Pixels, row: FloatArray, column: FloatArray, fill: FloatArray) -> Pixels:
    """Read (H, W) places between pixel centres, beyond the outermost of which `fill` begins."""
    height, width = pixels.shape[:2]
    framed = np.empty((height + 2, width + 2, 3))
    framed[:] = fill
    framed[1:-1, 1:-1] = pixels / 255
    row, column = np.clip(row + 1, 0, height + 1), np.clip(column + 1, 0, width + 1)
    top = np.minimum(np.floor(row).astype(np.int64), height)
    left = np.minimum(np.floor(column).astype(np.int64), width)
    down, right = (row - top)[..., None], (column - left)[..., None]
    upper = framed[top, left] * (1 - right) + framed[top, left + 1] * right
    lower = framed[top + 1, left] * (1 - right) + framed[top + 1, left + 1] * right
    return to_bytes(upper * (1 - down) + lower * down)
