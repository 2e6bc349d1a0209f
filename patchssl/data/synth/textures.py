"""Two-coloured patterns for objects, and irregular ones for backgrounds.

A pattern is the signed distance to the border between its two colours, in periods, and gives half of the plane to
each colour, so that an object's mean colour does not tell its pattern. Backgrounds have neither straight repetition
nor round spots, the things that tell the classes apart.
"""

import math
from collections.abc import Callable

import numpy as np

from patchssl.data.synth.canvas import Canvas, FloatArray
from patchssl.data.synth.shapes import SignedDistance

Background = Callable[[np.random.Generator, Canvas], FloatArray]


def stripes(u: FloatArray, v: FloatArray) -> FloatArray:
    """Bands along v, half a period wide."""
    return np.abs(_fraction(u) - 0.5) - 0.25 + 0.0 * v


def checks(u: FloatArray, v: FloatArray) -> FloatArray:
    """A chessboard of squares half a period wide."""
    across, along = np.abs(_fraction(u) - 0.5) - 0.25, np.abs(_fraction(v) - 0.5) - 0.25
    nearest = np.minimum(np.abs(across), np.abs(along))
    return np.where((across > 0) == (along > 0), nearest, -nearest)


def dots(u: FloatArray, v: FloatArray) -> FloatArray:
    """Round spots, one in every cell, each second row shifted by half a cell."""
    across = _fraction(u + 0.5 * (np.floor(v) % 2)) - 0.5
    along = _fraction(v) - 0.5
    return np.sqrt(across * across + along * along) - math.sqrt(0.5 / math.pi)


def zigzag(u: FloatArray, v: FloatArray) -> FloatArray:
    """Bands that turn by a right angle every half period."""
    return stripes(u + np.abs(_fraction(v) - 0.5) * 2, v) / math.sqrt(5)


def ripples(u: FloatArray, v: FloatArray) -> FloatArray:
    """Circles around the origin."""
    return stripes(np.sqrt(u * u + v * v), v)


CLASS_PATTERNS: dict[str, SignedDistance] = {"stripes": stripes, "checks": checks, "dots": dots}
PATTERNS: dict[str, SignedDistance] = {**CLASS_PATTERNS, "zigzag": zigzag, "ripples": ripples}


def value_noise(rng: np.random.Generator, canvas: Canvas, cell: float) -> FloatArray:
    """Draw smooth noise: random values on a lattice, joined by smooth steps.

    Args:
        rng: where the values come from.
        canvas: where to draw, H x W pixels.
        cell: the lattice's spacing in the canvas's unit.

    Returns:
        (H, W) in [0, 1].
    """
    rows = _lattice_weights(canvas.y[:, 0], cell, rng.random())  # (H, n)
    columns = _lattice_weights(canvas.x[0], cell, rng.random())  # (W, m)
    lattice = rng.random((rows.shape[1], columns.shape[1]))
    noise: FloatArray = rows @ lattice @ columns.T
    return noise


def clouds(rng: np.random.Generator, canvas: Canvas) -> FloatArray:
    """Noise at three scales."""
    coarse = 0.55 * value_noise(rng, canvas, 0.9)
    middle = 0.3 * value_noise(rng, canvas, 0.4)
    return _spread(coarse + middle + 0.15 * value_noise(rng, canvas, 0.15))


def facets(rng: np.random.Generator, canvas: Canvas) -> FloatArray:
    """Flat pieces around random points (a Voronoi diagram), each with a shade of its own."""
    points, shades = rng.random((14, 2)), rng.random(14)
    x = (points[:, 0] * 2 - 1) * canvas.half_width
    y = (points[:, 1] * 2 - 1) * canvas.half_height
    squares = (canvas.x - x[:, None, None]) ** 2 + (canvas.y - y[:, None, None]) ** 2  # (14, H, W)
    flat: FloatArray = shades[np.argmin(squares, axis=0)]
    return 0.8 * flat + 0.2 * value_noise(rng, canvas, 0.4)


def contours(rng: np.random.Generator, canvas: Canvas) -> FloatArray:
    """The lines of equal height of smooth noise, as in a map or in marble."""
    height = value_noise(rng, canvas, 0.8) * 5 + value_noise(rng, canvas, 0.3)
    return np.clip(np.abs(_fraction(height) - 0.5) * 3 - 0.25, 0.0, 1.0)


def grain(rng: np.random.Generator, canvas: Canvas) -> FloatArray:
    """Fine noise on a soft ground, as in sand."""
    return _spread(0.5 * value_noise(rng, canvas, 0.07) + 0.5 * value_noise(rng, canvas, 0.9))


BACKGROUNDS: tuple[Background, ...] = (clouds, facets, contours, grain)


def _fraction(value: FloatArray) -> FloatArray:
    return value - np.floor(value)


def _spread(noise: FloatArray) -> FloatArray:
    """Undo the loss of contrast of averaged noise."""
    return np.clip((noise - 0.5) * 1.9 + 0.5, 0.0, 1.0)


def _lattice_weights(positions: FloatArray, cell: float, offset: float) -> FloatArray:
    """The share of every lattice value in the value at every position, (positions, lattice values)."""
    scaled = (positions - positions[0]) / cell + offset
    low = np.floor(scaled).astype(np.int64)
    step = scaled - low
    step = step * step * (3 - 2 * step)
    weights = np.zeros((len(positions), int(low[-1]) + 2))
    rows = np.arange(len(positions))
    weights[rows, low] = 1 - step
    weights[rows, low + 1] = step
    return weights
