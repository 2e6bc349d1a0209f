"""Objects, where they stand, and how a picture of them is drawn."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patchssl.data.synth.canvas import Canvas, FloatArray, Pixels, to_bytes
from patchssl.data.synth.randomness import choose
from patchssl.data.synth.shapes import SHAPES, coverage
from patchssl.data.synth.textures import BACKGROUNDS, PATTERNS

_EDGE_PX = 1.5
_SHADOW_REACH = 0.16
_SHADOW = 0.4


@dataclass(frozen=True, slots=True)
class Thing:
    """What an object is, whatever its pose: redrawn anywhere, it stays the same object.

    Attributes:
        shape: a key of `SHAPES`.
        pattern: a key of `PATTERNS`.
        paint: its two colours, (3,) RGB in [0, 1].
        period: the pattern's period, where the object's area is 1.
        slant: angle of the pattern within the object, in radians.
        badge: a key of `SHAPES` for a small mark in the middle, or None.
        badge_paint: the mark's colour, (3,) RGB in [0, 1].
    """

    shape: str
    pattern: str
    paint: tuple[FloatArray, FloatArray]
    period: float
    slant: float
    badge: str | None
    badge_paint: FloatArray


@dataclass(frozen=True, slots=True)
class Pose:
    """Where an object stands, in the canvas's unit (half of the short side).

    Attributes:
        x: its centre, from the middle to the right.
        y: its centre, from the middle to the bottom.
        area: the area it covers; the whole of a square canvas has 4.
        angle: its rotation in radians.
    """

    x: float
    y: float
    area: float
    angle: float


@dataclass(frozen=True, slots=True)
class Light:
    """What the camera adds.

    Attributes:
        brightness: factor of all colours.
        slope: relative change of the light from the middle to the edge.
        direction: where the light comes from, in radians.
        noise: largest deviation of a colour by the sensor's noise.
    """

    brightness: float
    slope: float
    direction: float
    noise: float


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture being drawn.

    Attributes:
        canvas: its pixel centres, H x W.
        colours: (H, W, 3), nominally in [0, 1].
    """

    canvas: Canvas
    colours: FloatArray


def background(rng: np.random.Generator, canvas: Canvas, ground: tuple[FloatArray, FloatArray]) -> Picture:
    """Begin a picture with one of the background textures in the two colours given."""
    shade = choose(rng, BACKGROUNDS)(rng, canvas)[..., None]  # (H, W, 1)
    return Picture(canvas, ground[0] + shade * (ground[1] - ground[0]))


def outline(canvas: Canvas, shape: str, pose: Pose) -> FloatArray:
    """Give the signed distance of every pixel from a posed shape.

    Returns:
        (H, W) in the canvas's unit, negative inside.
    """
    size = math.sqrt(pose.area)
    return SHAPES[shape](*_local(canvas, pose)) * size


def silhouette(canvas: Canvas, shape: str, pose: Pose) -> npt.NDArray[np.bool_]:
    """Mark the pixels whose centre a posed shape covers, (H, W)."""
    return outline(canvas, shape, pose) < 0


def draw_thing(picture: Picture, thing: Thing, pose: Pose) -> Picture:
    """Draw an object, with a soft shadow around it, over a picture."""
    canvas = picture.canvas
    distance = outline(canvas, thing.shape, pose)
    covered = coverage(distance, _EDGE_PX * canvas.pixel)[..., None]  # (H, W, 1)
    shadow = 1 - _SHADOW * coverage(distance - _SHADOW_REACH / 2, _SHADOW_REACH)[..., None]
    shaded = picture.colours * shadow
    return Picture(canvas, shaded + covered * (_surface(canvas, thing, pose) - shaded))


def draw_plain(picture: Picture, shape: str, pose: Pose, paint: FloatArray) -> Picture:
    """Draw a shape in one colour, (3,) RGB, over a picture."""
    covered = coverage(outline(picture.canvas, shape, pose), _EDGE_PX * picture.canvas.pixel)[..., None]
    return Picture(picture.canvas, picture.colours + covered * (paint - picture.colours))


def photograph(rng: np.random.Generator, picture: Picture, light: Light) -> Pixels:
    """Light a picture, add noise and quantise it, (H, W, 3)."""
    canvas = picture.canvas
    along = canvas.x * math.cos(light.direction) + canvas.y * math.sin(light.direction)  # (H, W)
    lit = picture.colours * (light.brightness * (1 + light.slope * along))[..., None]
    return to_bytes(lit + light.noise * (2 * rng.random(lit.shape) - 1))


def daylight(rng: np.random.Generator, strength: float = 1.0) -> Light:
    """Draw a light; `strength` 1 is moderate, larger values vary more, 0 is plain."""
    return Light(
        brightness=1 + strength * rng.uniform(-0.15, 0.15),
        slope=strength * rng.uniform(0.0, 0.25),
        direction=rng.uniform(0, 2 * math.pi),
        noise=rng.uniform(0.01, 0.05),
    )


def any_thing(rng: np.random.Generator, paint: tuple[FloatArray, FloatArray], badge_paint: FloatArray) -> Thing:
    """Draw an object of any shape and pattern, with or without a badge, in the colours given."""
    return Thing(
        shape=choose(rng, tuple(SHAPES)),
        pattern=choose(rng, tuple(PATTERNS)),
        paint=paint,
        period=rng.uniform(0.2, 0.4),
        slant=rng.uniform(0, math.pi),
        badge=choose(rng, (None, *SHAPES)),
        badge_paint=badge_paint,
    )


def _local(canvas: Canvas, pose: Pose) -> tuple[FloatArray, FloatArray]:
    """Pixel centres as the object sees them, upright, its area being 1; two (H, W)."""
    size = math.sqrt(pose.area)
    cos, sin = math.cos(pose.angle) / size, math.sin(pose.angle) / size
    x, y = canvas.x - pose.x, canvas.y - pose.y
    return x * cos + y * sin, x * sin - y * cos


def _surface(canvas: Canvas, thing: Thing, pose: Pose) -> FloatArray:
    """The object's colours as if it covered everything, (H, W, 3)."""
    u, v = _local(canvas, pose)
    edge = _EDGE_PX * canvas.pixel / math.sqrt(pose.area)
    cos, sin = math.cos(thing.slant) / thing.period, math.sin(thing.slant) / thing.period
    border = PATTERNS[thing.pattern](u * cos + v * sin, v * cos - u * sin) * thing.period
    first = coverage(border, edge)[..., None]  # (H, W, 1)
    colours = thing.paint[1] + first * (thing.paint[0] - thing.paint[1])
    if thing.badge is None:
        return colours
    size = 0.36
    mark = coverage(SHAPES[thing.badge](u / size, v / size) * size, edge)[..., None]
    return colours + mark * (thing.badge_paint - colours)
