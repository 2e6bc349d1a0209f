from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from patchssl.warps import (
    KINDS,
    MOVE,
    NUM_PAIR_UNIFORMS,
    SIDE,
    TILT,
    ZOOM,
    Kind,
    apply,
    draw_pair,
    grid_centres,
    mirror,
    patch_places,
    tilt,
)

VIEW = 32
EVERY = tuple(KINDS.values())
CORNERS = np.array([[0.0, 0], [VIEW, 0], [VIEW, VIEW], [0, VIEW]])


def box(left: float, top: float, side: float, view: float) -> NDArray[np.float64]:
    return np.array([[side / view, 0, left], [0, side / view, top], [0, 0, 1.0]])


def drawn(num: int = 200, kinds: Sequence[Kind] = EVERY) -> list[tuple[int, int, NDArray[np.float64]]]:
    """Height, width and views of images of many sizes."""
    generator = np.random.default_rng(0)
    pairs = []
    for _ in range(num):
        height, width = (int(size) for size in generator.integers(16, 300, 2))
        numbers = generator.uniform(size=NUM_PAIR_UNIFORMS).tolist()
        pairs.append((height, width, draw_pair(numbers, kinds, height_px=height, width_px=width, view_px=VIEW)))
    return pairs


def test_points_by_hand() -> None:
    points = np.array([[0.0, 0], [4, 2]])
    np.testing.assert_allclose(apply(box(10, 20, 2, 4), points), [[10, 20], [12, 21]])
    np.testing.assert_allclose(apply(mirror(4), points), [[4, 0], [0, 2]])
    # Projective: x / (1 + x), y / (1 + x).
    np.testing.assert_allclose(
        apply(np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 1]]), points), np.array([[0, 0], [0.8, 0.4]])
    )


def test_patches_of_a_2_x_2_grid_by_hand() -> None:
    first = box(0, 0, 8, 8)
    np.testing.assert_allclose(grid_centres((2, 2)), [[0.5, 0.5], [1.5, 0.5], [0.5, 1.5], [1.5, 1.5]])
    np.testing.assert_allclose(patch_places(first, first, (2, 2), view_px=8), grid_centres((2, 2)))
    flipped = patch_places(first, first @ mirror(8), (2, 2), view_px=8)
    np.testing.assert_allclose(flipped, [[1.5, 0.5], [0.5, 0.5], [1.5, 1.5], [0.5, 1.5]])
    # A box that lies 1 px further right and 2 px down: everything is seen a quarter and half a patch further up left.
    moved = patch_places(first, box(1, 2, 8, 8), (2, 2), view_px=8)
    np.testing.assert_allclose(moved, grid_centres((2, 2)) - [0.25, 0.5])
    # The middle half, enlarged: centres of patches come to lie on its corners.
    zoomed = patch_places(first, box(2, 2, 4, 8), (2, 2), view_px=8)
    np.testing.assert_allclose(zoomed, [[0, 0], [2, 0], [0, 2], [2, 2]], atol=1e-12)
    # 2 rows of 4 columns, in patches of half the width.
    np.testing.assert_allclose(
        patch_places(first, box(1, 2, 8, 8), (2, 4), view_px=8)[0], [0.5 - 0.5, 0.5 - 0.5], atol=1e-12
    )


def square_to_quad(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Heckbert's closed form from the unit square (Fundamentals of texture mapping and image warping, 1989, §2.2.3)."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    dx1, dx2, dx3 = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, dy3 = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    det = dx1 * dy2 - dx2 * dy1
    g, h = (dx3 * dy2 - dx2 * dy3) / det, (dx1 * dy3 - dx3 * dy1) / det
    return np.array([[x1 - x0 + g * x1, x3 - x0 + h * x3, x0], [y1 - y0 + g * y1, y3 - y0 + h * y3, y0], [g, h, 1]])


def test_tilt_is_the_homography_between_the_corners() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        inwards = generator.uniform(0, TILT, 8)
        matrix = tilt(inwards, VIEW)
        corners = CORNERS + inwards.reshape(4, 2) * VIEW * [[1, 1], [-1, 1], [-1, -1], [1, -1]]
        np.testing.assert_allclose(apply(matrix, CORNERS), corners, atol=1e-9)
        points = generator.uniform(0, VIEW, (20, 2))
        np.testing.assert_allclose(apply(matrix, points), apply(square_to_quad(corners), points / VIEW), atol=1e-9)
    np.testing.assert_allclose(tilt(np.zeros(8), VIEW), np.eye(3), atol=1e-12)


def test_inverse_and_composition() -> None:
    points = np.random.default_rng(2).uniform(0, VIEW, (30, 2))
    for _, _, views in drawn(20):
        for first in views:
            np.testing.assert_allclose(apply(np.linalg.inv(first), apply(first, points)), points, atol=1e-8)
            np.testing.assert_allclose(
                patch_places(first, first, (4, 4), view_px=VIEW), grid_centres((4, 4)), atol=1e-9
            )
            for second in views:
                np.testing.assert_allclose(apply(second @ first, points), apply(second, apply(first, points)))
    np.testing.assert_allclose(mirror(VIEW) @ mirror(VIEW), np.eye(3))


def test_every_view_lies_inside_its_image() -> None:
    for height, width, views in drawn():
        corners = apply(views, np.broadcast_to(CORNERS, (len(views), 4, 2)))
        assert corners.min() >= -1e-9
        assert (corners <= np.array([width, height]) + 1e-9).all()


def test_kinds_do_what_they_are_named_after() -> None:
    zooms = []
    for height, width, (first, crop, scale, flip, perspective, colour, everything) in drawn():
        side, shorter = first[0, 0] * VIEW, min(height, width)
        assert SIDE[0] * shorter <= side <= SIDE[1] * shorter
        np.testing.assert_allclose(crop[:2, :2], first[:2, :2])
        assert (np.abs(crop[:2, 2] - first[:2, 2]) <= MOVE * side + 1e-9).all()
        np.testing.assert_array_equal(colour, crop)
        np.testing.assert_array_equal(flip, crop @ mirror(VIEW))
        inside = apply(np.linalg.inv(crop), apply(perspective, CORNERS)) / VIEW
        assert (np.abs(inside - CORNERS / VIEW) <= TILT + 1e-9).all()
        zooms.append(scale[0, 0] / first[0, 0])
        either = (
            apply(np.linalg.inv(scale) @ first, CORNERS)
            if zooms[-1] > 1
            else apply(np.linalg.inv(first) @ scale, CORNERS)
        )
        assert (either >= -1e-9).all()
        assert (either <= VIEW + 1e-9).all()
        np.testing.assert_allclose(everything, scale @ np.linalg.inv(crop) @ perspective @ mirror(VIEW), atol=1e-9)
    factors = np.array(zooms)
    assert ((factors >= 1 / ZOOM[1] - 1e-9) & (factors <= 1 / ZOOM[0] + 1e-9) | (factors > 1)).all()
    assert factors.max() <= ZOOM[1]
    assert 0.35 < (factors > 1).mean() < 0.65


def test_a_kind_does_not_depend_on_which_others_there_are() -> None:
    for (_, _, whole), (_, _, alone) in zip(drawn(20), drawn(20, [KINDS["perspective"]]), strict=True):
        np.testing.assert_array_equal(alone, whole[[0, 4]])


def test_the_least_and_greatest_numbers() -> None:
    kinds = [Kind(), Kind(zoom=True)]
    least, crop, scale = draw_pair([0.0] * NUM_PAIR_UNIFORMS, kinds, height_px=100, width_px=200, view_px=50)
    np.testing.assert_allclose(least, box(0, 0, 50, 50))
    np.testing.assert_allclose(crop, box(0, 0, 50, 50))
    np.testing.assert_allclose(scale, box(0, 0, 50 / 2**0.5, 50))
    numbers = [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, *[0.0] * 8]
    greatest, crop, scale = draw_pair(numbers, kinds, height_px=100, width_px=200, view_px=70)
    np.testing.assert_allclose(greatest, box(130, 30, 70, 70))
    np.testing.assert_allclose(crop, greatest)
    # 70 * 2 ** 0.75 would be more than the image has.
    np.testing.assert_allclose(scale, box(100, 0, 100, 70))


def test_another_number_of_uniforms_is_refused() -> None:
    with pytest.raises(ValueError, match="13 uniform numbers; a pair of views takes 14"):
        draw_pair([0.5] * 13, [Kind()], height_px=9, width_px=9, view_px=4)
