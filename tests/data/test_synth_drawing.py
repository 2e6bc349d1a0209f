"""The built-in images: outlines, patterns, canvas, warps and edits."""

import math

import numpy as np
import pytest

from patchssl.data.synth import edits, shapes, textures
from patchssl.data.synth.canvas import FloatArray, Pixels, canvas, to_bytes
from patchssl.data.synth.randomness import Part, generator, paint_colours, palette
from patchssl.data.synth.warp import warp


def plane(side: int = 800, reach: float = 2.0) -> tuple[FloatArray, FloatArray, float]:
    """Pixel centres of a square and the area of a pixel."""
    x = ((np.arange(side) + 0.5) / side * 2 - 1) * reach
    return x[None, :], x[:, None], (2 * reach / side) ** 2


def noise_image(height: int = 36, width: int = 48) -> Pixels:
    return to_bytes(np.random.default_rng(0).random((height, width, 3)))


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_every_outline_has_area_one_and_its_centre_of_mass_in_the_middle(name: str) -> None:
    u, v, pixel = plane()
    inside = shapes.SHAPES[name](u, v) < 0
    assert inside.sum() * pixel == pytest.approx(1, abs=0.005)
    assert abs((inside * u).sum() * pixel) < 0.005
    assert abs((inside * v).sum() * pixel) < 0.005


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_an_outline_is_never_farther_than_it_says(name: str) -> None:
    # A signed distance changes by at most the way gone; otherwise edges would be sharper than a pixel.
    u, v, _ = plane(200)
    distance = shapes.SHAPES[name](u, v)
    way = u[0, 1] - u[0, 0]
    assert np.abs(np.diff(distance, axis=0)).max() <= way * (1 + 1e-9)
    assert np.abs(np.diff(distance, axis=1)).max() <= way * (1 + 1e-9)


@pytest.mark.parametrize(
    ("name", "u", "v", "expected"),
    [
        ("disc", 0.0, 0.0, -1 / math.sqrt(math.pi)),
        ("disc", 3.0, 4.0, 5 - 1 / math.sqrt(math.pi)),
        ("square", 0.2, -0.4, -0.1),
        ("square", -0.75, 0.1, 0.25),
        ("cross", 0.0, 1.5 / math.sqrt(5) + 0.1, 0.1),
        ("pill", 0.0, 1.0, 1 - 1 / math.sqrt(6 + math.pi)),
    ],
)
def test_distances_worked_by_hand(name: str, u: float, v: float, expected: float) -> None:
    assert shapes.SHAPES[name](np.array([u]), np.array([v]))[0] == pytest.approx(expected)


def test_the_star_is_the_polygon_of_its_ten_corners() -> None:
    u, v, _ = plane(120, 1.2)
    tip = 1 / math.sqrt(2.5 * math.sin(math.pi / 5))
    angles = np.arange(10) * math.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, tip, tip / 2)
    corners = np.stack([radii * np.sin(angles), radii * np.cos(angles)], axis=1)
    crossings = np.zeros(np.broadcast_shapes(u.shape, v.shape), dtype=int)
    for (u0, v0), (u1, v1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        spans = (v0 > v) != (v1 > v)
        crossings += spans & (u < u0 + (v - v0) * (u1 - u0) / (v1 - v0))
    assert np.array_equal(shapes.star(u, v) < 0, crossings % 2 == 1)


def test_coverage_is_half_on_the_border_and_whole_beyond_the_step() -> None:
    assert shapes.coverage(np.array([-1.0, -0.1, 0.0, 0.1, 1.0]), 0.2) == pytest.approx([1, 1, 0.5, 0, 0])
    assert shapes.coverage(np.array([-0.05]), 0.2)[0] == pytest.approx(0.75**2 * 1.5)


@pytest.mark.parametrize("name", textures.PATTERNS)
def test_a_pattern_gives_half_of_the_plane_to_each_colour(name: str) -> None:
    u, v, _ = plane(800, 8.0)
    u, v = u + 0.0031, v + 0.0047  # no pixel centre on a border
    assert (textures.PATTERNS[name](u, v) < 0).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("name", "u", "v", "expected"),
    [
        ("stripes", 0.0, 0.3, 0.25),
        ("stripes", 0.5, 0.3, -0.25),
        ("stripes", 2.3, 0.0, -0.05),
        ("checks", 0.0, 0.0, 0.25),
        ("checks", 0.5, 0.0, -0.25),
        ("checks", 0.5, 0.45, 0.2),
        ("dots", 0.5, 0.5, -math.sqrt(0.5 / math.pi)),
        ("dots", 1.0, 1.5, -math.sqrt(0.5 / math.pi)),
        ("ripples", 0.3, 0.4, -0.25),
        ("zigzag", 0.0, 0.25, -0.25 / math.sqrt(5)),
    ],
)
def test_patterns_worked_by_hand(name: str, u: float, v: float, expected: float) -> None:
    assert textures.PATTERNS[name](np.array([u]), np.array([v]))[0] == pytest.approx(expected)


def test_value_noise_is_bilinear_in_smoothed_steps() -> None:
    area, cell = canvas(7, 9), 0.6
    drawn = textures.value_noise(generator(3, Part.SCENE), area, cell)
    rng = generator(3, Part.SCENE)
    row_offset, column_offset = rng.random(), rng.random()
    places = [
        [(position - line[0]) / cell + offset for position in line]
        for line, offset in ((area.y[:, 0], row_offset), (area.x[0], column_offset))
    ]
    lattice = rng.random(tuple(int(line[-1]) + 2 for line in places))

    def step(value: float) -> float:
        return value * value * (3 - 2 * value)

    for row, y in enumerate(places[0]):
        for column, x in enumerate(places[1]):
            top, left = int(y), int(x)
            upper = lattice[top, left] * (1 - step(x - left)) + lattice[top, left + 1] * step(x - left)
            lower = lattice[top + 1, left] * (1 - step(x - left)) + lattice[top + 1, left + 1] * step(x - left)
            assert drawn[row, column] == pytest.approx(upper * (1 - step(y - top)) + lower * step(y - top))


@pytest.mark.parametrize("draw", textures.BACKGROUNDS)
@pytest.mark.parametrize("size", [(32, 32), (96, 128), (128, 96)])
def test_backgrounds_fill_the_canvas_with_varied_shades(draw: textures.Background, size: tuple[int, int]) -> None:
    shade = draw(generator(0, Part.SCENE), canvas(*size))
    assert shade.shape == size
    assert 0 <= shade.min() < shade.max() <= 1
    assert shade.std() > 0.05


def test_pixel_centres_are_symmetric_and_the_short_side_is_two_wide() -> None:
    area = canvas(2, 4)
    assert area.x.tolist() == [[-1.5, -0.5, 0.5, 1.5]]
    assert area.y.tolist() == [[-0.5], [0.5]]
    assert (area.half_height, area.half_width, area.pixel) == (1.0, 2.0, 1.0)


def test_colours_round_to_the_nearest_byte_and_are_clipped() -> None:
    assert to_bytes(np.array([-0.2, 0.0, 0.49 / 255, 0.5 / 255, 1.0, 1.7])).tolist() == [0, 0, 0, 1, 255, 255]


def test_generators_differ_by_every_part_of_their_key_and_repeat() -> None:
    keys: list[tuple[int, Part, tuple[int, ...]]] = [
        (0, Part.VIEW, (0, 0)),
        (0, Part.VIEW, (0,)),
        (0, Part.VIEW, (1,)),
        (0, Part.CROP, (0,)),
        (1, Part.VIEW, (0,)),
    ]
    drawn = [generator(seed, part, *key).random() for seed, part, key in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn == [generator(seed, part, *key).random() for seed, part, key in keys]


def test_object_colours_stand_out() -> None:
    luma = np.array([0.299, 0.587, 0.114])
    for index in range(200):
        colours = palette(generator(0, Part.CLASS_IMAGE, index))
        first, second = colours.paint
        middle = (colours.ground[0] + colours.ground[1]) / 2
        assert abs(((first - second) * luma).sum()) >= 0.3
        assert min(np.linalg.norm(first - middle), np.linalg.norm(second - middle)) >= 0.3
        assert all(c.min() >= 0 and c.max() <= 1 for c in (*colours.ground, *colours.paint))


def test_paint_colours_are_the_best_pair_where_none_is_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    greys = iter([0.50, 0.50] + [0.52, 0.53] * 10 + [0.60, 0.40] + [0.52, 0.53] * 53)
    monkeypatch.setattr("patchssl.data.synth.randomness.colour", lambda rng: np.full(3, next(greys)))
    grounds = (np.full(3, 0.5), np.full(3, 0.5))
    pair = paint_colours(generator(0, Part.THING), grounds)
    assert [c[0] for c in pair] == [0.60, 0.40]


def test_a_warp_by_nothing_changes_nothing() -> None:
    image = noise_image()
    still = warp(image, angle=0.0, lean=(0.0, 0.0), zoom=1.0, fill=np.zeros(3))
    assert np.array_equal(still, image)


def test_a_quarter_turn_is_a_transposition() -> None:
    image = noise_image(40, 40)
    turned = warp(image, angle=math.pi / 2, lean=(0.0, 0.0), zoom=1.0, fill=np.zeros(3))
    assert np.array_equal(turned, np.rot90(image, -1))


def test_a_warp_fills_what_lies_outside() -> None:
    small = warp(noise_image(40, 40), angle=0.0, lean=(0.0, 0.0), zoom=0.5, fill=np.array([1.0, 0.0, 0.0]))
    assert (small[:9] == [255, 0, 0]).all()
    assert (small[-9:] == [255, 0, 0]).all()
    assert (small[11:29, 11:29] != [255, 0, 0]).any(axis=-1).all()


@pytest.mark.parametrize("percent", [0, 10, 50, 80])
def test_a_crop_removes_its_share_of_the_surface_and_changes_no_pixel(percent: int) -> None:
    image = noise_image(96, 128)
    kept = edits.crop(generator(0, Part.CROP, percent), image, percent)
    assert kept.shape[0] * kept.shape[1] == pytest.approx(96 * 128 * (1 - percent / 100), rel=0.03)
    windows = np.lib.stride_tricks.sliding_window_view(image, kept.shape)
    assert any(np.array_equal(window, kept) for window in windows.reshape(-1, *kept.shape))


def test_a_crop_keeps_sixteen_pixels() -> None:
    assert edits.crop(generator(0, Part.CROP), noise_image(24, 32), 80).shape == (16, 16, 3)


@pytest.mark.parametrize("name", edits.STRONG_EDITS)
def test_strong_edits_change_most_pixels_and_keep_the_size(name: str) -> None:
    image = noise_image(96, 128)
    edited = edits.STRONG_EDITS[name](generator(0, Part.STRONG), image)
    assert edited.shape == image.shape
    assert edited.dtype == np.uint8
    assert (edited != image).any(axis=-1).mean() > 0.15
    assert np.array_equal(edited, edits.STRONG_EDITS[name](generator(0, Part.STRONG), image))


def test_an_insert_holds_the_whole_image() -> None:
    image = np.full((60, 80, 3), 255, dtype=np.uint8)
    image[:, :, 1:] = 0
    around = edits.insert(generator(0, Part.STRONG), image)
    red = (around == [255, 0, 0]).all(axis=-1)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert red[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert 0.45**2 - 0.02 < red.mean() < 0.65**2 + 0.02


def test_strong_applies_two_different_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[str] = []

    def recorder(name: str) -> edits.Edit:
        def edit(rng: np.random.Generator, pixels: Pixels) -> Pixels:
            applied.append(name)
            return pixels

        return edit

    for name in list(edits.STRONG_EDITS):
        monkeypatch.setitem(edits.STRONG_EDITS, name, recorder(name))
    for index in range(50):
        edits.strong(generator(0, Part.STRONG, index), noise_image())
    pairs = list(zip(applied[::2], applied[1::2], strict=True))
    assert len(pairs) == 50
    assert all(first != second for first, second in pairs)
    assert set(applied) == set(edits.STRONG_EDITS)
