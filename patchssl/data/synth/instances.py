"""Single objects seen again and again, in the layout of revisited Oxford and Paris.

Radenović et al.: "Revisiting Oxford and Paris: large-scale image retrieval benchmarking", CVPR 2018, whose ground
truth names easy, hard and junk images for every query.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from patchssl.data.synth.canvas import Canvas, FloatArray, canvas
from patchssl.data.synth.difficulty import light_strength, obscure
from patchssl.data.synth.files import Drawing
from patchssl.data.synth.randomness import Part, choose, colour, generator, ground_colours, paint_colours
from patchssl.data.synth.scenes import (
    Picture,
    Pose,
    Thing,
    any_thing,
    background,
    daylight,
    draw_thing,
    photograph,
    silhouette,
)
from patchssl.data.synth.shapes import SHAPES, coverage
from patchssl.data.synth.textures import PATTERNS, clouds

_MIN_QUERIES, _MAX_QUERIES = 10, 20
_CLASS_IMAGES_PER_QUERY = 100
_QUALITY = 90

NUM_VIEWS = {"easy": 6, "hard": 6, "junk": 2}
NUM_SIBLINGS = 6
ROLES = ("query", *NUM_VIEWS, "other")


@dataclass(frozen=True, slots=True)
class View:
    """How one image shows an object.

    Attributes:
        pose: where the object stands.
        hidden: the share of its visible pixels that something in front of it covers.
        light: how far the light departs from a plain one.
    """

    pose: Pose
    hidden: float
    light: float


@dataclass(frozen=True, slots=True)
class RetrievalImage:
    """An image of the retrieval set.

    Attributes:
        name: its file's name without `.jpg`.
        query: which query's object it shows, or which it was made to be confused with.
        role: one of `ROLES`.
        drawing: the file.
        box: left, top, right, bottom of the object in pixels, half-open.
    """

    name: str
    query: int
    role: str
    drawing: Drawing
    box: tuple[float, float, float, float]


def num_queries(num_images: int) -> int:
    """One query per 100 class images, at least 10 and at most 20."""
    return min(_MAX_QUERIES, max(_MIN_QUERIES, num_images // _CLASS_IMAGES_PER_QUERY))


def num_drawings(num_images: int) -> int:
    """How many files `retrieval_images` draws."""
    return num_queries(num_images) * (1 + sum(NUM_VIEWS.values()) + NUM_SIBLINGS)


def retrieval_images(
    num_images: int, long_side_px: int, seed: int, difficulty: float = 1.0
) -> Iterator[RetrievalImage]:
    """Draw, for every query object, the query, its views, and other objects that resemble it.

    The light varies and objects turn the more the larger the difficulty; above 1 other objects, lost contrast and
    noise cover the pictures.
    """
    area = canvas(round(long_side_px * 0.75), long_side_px)
    for query in range(num_queries(num_images)):
        thing = draw_instance(query, seed)
        usual = generator(seed, Part.VIEW, query).uniform(0, 2 * math.pi)
        for role, count in {"query": 1, **NUM_VIEWS}.items():
            for number in range(count):
                rng = generator(seed, Part.VIEW, query, ROLES.index(role), number)
                view = draw_view(rng, role, usual, difficulty)
                yield _obscured(_image(rng, area, thing, view, (query, role, number)), number, seed, difficulty)
        for number in range(NUM_SIBLINGS):
            rng = generator(seed, Part.SIBLING, query, number)
            view = draw_view(rng, "easy", usual, difficulty)
            image = _image(rng, area, _sibling(rng, thing, number), view, (query, "other", number))
            yield _obscured(image, number, seed, difficulty)


def ground_truth(images: list[RetrievalImage]) -> dict[str, object]:
    """Build the ground truth in the revisited form.

    Args:
        images: all images of the set.

    Returns:
        `imlist` and `qimlist` (names without suffix), and `gnd`, for every query `bbx` (left, top, right, bottom in
        pixels) and `easy`, `hard`, `junk` (positions in `imlist`).
    """
    database = [image for image in images if image.role != "query"]
    queries = [image for image in images if image.role == "query"]
    return {
        "imlist": [image.name for image in database],
        "qimlist": [image.name for image in queries],
        "gnd": [
            {
                "bbx": list(query.box),
                **{
                    role: [at for at, image in enumerate(database) if (image.query, image.role) == (query.query, role)]
                    for role in NUM_VIEWS
                },
            }
            for query in queries
        ],
    }


def draw_instance(query: int, seed: int) -> Thing:
    """Draw what a query's object is: shape, pattern, colours, badge."""
    rng = generator(seed, Part.THING, query)
    return any_thing(rng, paint_colours(rng, ground_colours(rng)), colour(rng))


def draw_view(rng: np.random.Generator, role: str, usual_angle: float, difficulty: float = 1.0) -> View:
    """Draw how an image of this role shows its object.

    `query` and `easy` show it large, turned by up to 20 degrees from its usual angle, in mild light; `hard` at any
    angle, in strong light, small (5 to 9 % of the image) or with 30 to 50 % of it hidden; `junk` as a speck (below
    1 %) or with 85 to 93 % of it hidden. The difficulty is a factor of the turn and of the light.
    """
    light = light_strength(difficulty)
    if role in ("query", "easy"):
        turn = min(math.pi, math.radians(20) * difficulty) * rng.uniform(-1, 1)
        pose = Pose(rng.uniform(-0.4, 0.4), rng.uniform(-0.15, 0.15), rng.uniform(0.9, 1.6), usual_angle + turn)
        return View(pose, hidden=0.0, light=0.7 * light)
    hide = rng.random() < 0.5
    turn = rng.uniform(0, 2 * math.pi)
    if role == "hard":
        if hide:
            pose = Pose(rng.uniform(-0.5, 0.5), rng.uniform(-0.25, 0.25), rng.uniform(0.7, 1.2), turn)
            return View(pose, hidden=rng.uniform(0.3, 0.5), light=1.8 * light)
        pose = Pose(rng.uniform(-0.9, 0.9), rng.uniform(-0.5, 0.5), rng.uniform(0.27, 0.48), turn)
        return View(pose, hidden=0.0, light=1.8 * light)
    if hide:
        pose = Pose(rng.uniform(-0.5, 0.5), rng.uniform(-0.25, 0.25), rng.uniform(0.6, 1.2), turn)
        return View(pose, hidden=rng.uniform(0.85, 0.93), light=1.8 * light)
    pose = Pose(rng.uniform(-1, 1), rng.uniform(-0.8, 0.8), rng.uniform(0.02, 0.04), turn)
    return View(pose, hidden=0.0, light=1.8 * light)


def hide(rng: np.random.Generator, picture: Picture, thing: Thing, pose: Pose, share: float) -> Picture:
    """Put a cloudy board in front of an object.

    Args:
        rng: where the board's side and colours come from.
        picture: what was drawn so far.
        thing: the object to hide.
        pose: where it stands.
        share: the part of its pixels to hide, in (0, 1); from a random side up to the line that leaves the rest.

    Returns:
        The picture with the board.
    """
    area = picture.canvas
    direction = rng.uniform(0, 2 * math.pi)
    along = area.x * math.cos(direction) + area.y * math.sin(direction)  # (H, W)
    border = _quantile(along[silhouette(area, thing.shape, pose)], 1 - share)
    board = coverage(border - along, 1.5 * area.pixel)[..., None]
    first, second = ground_colours(rng)
    face = first + clouds(rng, area)[..., None] * (second - first)
    return Picture(area, picture.colours + board * (face - picture.colours))


def bounding_box(area: Canvas, thing: Thing, pose: Pose) -> tuple[float, float, float, float]:
    """The smallest box around the object's pixels: left, top, right, bottom, half-open."""
    inside = silhouette(area, thing.shape, pose)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _image(
    rng: np.random.Generator, area: Canvas, thing: Thing, view: View, place: tuple[int, str, int]
) -> RetrievalImage:
    query, role, number = place
    picture = draw_thing(background(rng, area, ground_colours(rng)), thing, view.pose)
    if view.hidden:
        picture = hide(rng, picture, thing, view.pose, view.hidden)
    name = f"object{query:02d}_{role}{number}"
    drawing = Drawing(f"jpg/{name}.jpg", photograph(rng, picture, daylight(rng, view.light)), _QUALITY)
    return RetrievalImage(name, query, role, drawing, bounding_box(area, thing, view.pose))


def _obscured(image: RetrievalImage, number: int, seed: int, difficulty: float) -> RetrievalImage:
    key = (Part.VIEW, image.query, ROLES.index(image.role), number)
    pixels = obscure(image.drawing.pixels, difficulty, seed, *key)
    return replace(image, drawing=replace(image.drawing, pixels=pixels))


def _sibling(rng: np.random.Generator, thing: Thing, number: int) -> Thing:
    """Make another object: in turn one of the same form in other colours, of the same colours in another form, any."""
    new_paint = paint_colours(rng, ground_colours(rng))
    if number % 3 == 0:
        return replace(thing, paint=new_paint, badge_paint=colour(rng))
    if number % 3 == 1:
        shape = choose(rng, [name for name in SHAPES if name != thing.shape])
        pattern = choose(rng, [name for name in PATTERNS if name != thing.pattern])
        return replace(thing, shape=shape, pattern=pattern)
    return any_thing(rng, new_paint, colour(rng))


def _quantile(values: FloatArray, share: float) -> float:
    """The value below which this share of them lies."""
    ordered = np.sort(values)
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])
