"""Outlines as signed distances: negative inside, positive outside, every outline of area 1.

Equal areas keep the share of an image that an object covers, and so the image's mean colour, free of the shape.
Only arithmetic and square roots touch the arrays: both round alike on every platform.
"""

import math
from collections.abc import Callable

import numpy as np

from patchssl.data.synth.canvas import FloatArray

SignedDistance = Callable[[FloatArray, FloatArray], FloatArray]

_SQRT3 = math.sqrt(3)


def disc(u: FloatArray, v: FloatArray) -> FloatArray:
    """A full circle."""
    return np.sqrt(u * u + v * v) - 1 / math.sqrt(math.pi)


def square(u: FloatArray, v: FloatArray) -> FloatArray:
    """A square with sides along the axes."""
    return np.maximum(np.abs(u), np.abs(v)) - 0.5


def triangle(u: FloatArray, v: FloatArray) -> FloatArray:
    """An equilateral triangle around its centre."""
    inradius = 1 / math.sqrt(3 * _SQRT3)
    return np.maximum(np.abs(u) * (_SQRT3 / 2) + v / 2, -v) - inradius


def hexagon(u: FloatArray, v: FloatArray) -> FloatArray:
    """A regular hexagon."""
    inradius = 1 / math.sqrt(2 * _SQRT3)
    return np.maximum(np.abs(u), np.abs(u) / 2 + np.abs(v) * (_SQRT3 / 2)) - inradius


def cross(u: FloatArray, v: FloatArray) -> FloatArray:
    """Five equal squares in the form of a plus."""
    side = 1 / math.sqrt(5)
    u, v = np.abs(u), np.abs(v)
    return np.minimum(
        np.maximum(u - 1.5 * side, v - 0.5 * side),
        np.maximum(u - 0.5 * side, v - 1.5 * side),
    )


def star(u: FloatArray, v: FloatArray) -> FloatArray:
    """A star of five points whose inner corners lie half as far out as its tips."""
    sector = math.pi / 5
    tip = 1 / math.sqrt(2.5 * math.sin(sector))
    # Three mirrors of the star's symmetry group bring every point into one tenth of the plane, between a tip at
    # angle 0 (the v axis) and the next inner corner at angle pi / 5.
    u, v = _mirror(np.abs(u), v, 2 * sector)
    u, v = _mirror(np.abs(u), v, sector)
    corner_u, corner_v = tip / 2 * math.sin(sector), tip / 2 * math.cos(sector)
    normal_u, normal_v = tip - corner_v, corner_u
    length = math.sqrt(normal_u**2 + normal_v**2)
    return (u * normal_u + (v - tip) * normal_v) / length


def ring(u: FloatArray, v: FloatArray) -> FloatArray:
    """A circular band, 0.7 of its middle radius wide."""
    radius = 1 / math.sqrt(1.4 * math.pi)
    return np.abs(np.sqrt(u * u + v * v) - radius) - 0.35 * radius


def pill(u: FloatArray, v: FloatArray) -> FloatArray:
    """A bar with round ends."""
    radius = 1 / math.sqrt(6 + math.pi)
    along = np.maximum(np.abs(u) - 1.5 * radius, 0.0)
    return np.sqrt(along * along + v * v) - radius


def bowl(u: FloatArray, v: FloatArray) -> FloatArray:
    """Half a circle around its centre of mass."""
    radius = math.sqrt(2 / math.pi)
    v = v + 4 * radius / (3 * math.pi)
    return np.maximum(np.sqrt(u * u + v * v) - radius, -v)


CLASS_SHAPES: dict[str, SignedDistance] = {"disc": disc, "square": square, "triangle": triangle, "star": star}
SHAPES: dict[str, SignedDistance] = {
    **CLASS_SHAPES,
    "hexagon": hexagon,
    "cross": cross,
    "ring": ring,
    "pill": pill,
    "bowl": bowl,
}


def coverage(distance: FloatArray, width: float) -> FloatArray:
    """Turn signed distances into the share of a pixel that lies inside: 1 inside, 0 outside, a smooth step between.

    Args:
        distance: any shape, negative inside.
        width: the step's width in the unit of the distances.

    Returns:
        The shape of `distance`, in [0, 1].
    """
    step = np.clip(0.5 - distance / width, 0.0, 1.0)
    return step * step * (3 - 2 * step)


def _mirror(u: FloatArray, v: FloatArray, angle: float) -> tuple[FloatArray, FloatArray]:
    """Reflect points at angles (from the v axis) above `angle` to the other side of that ray."""
    normal_u, normal_v = math.cos(angle), -math.sin(angle)
    beyond = 2 * np.maximum(u * normal_u + v * normal_v, 0.0)
    return u - beyond * normal_u, v - beyond * normal_v
