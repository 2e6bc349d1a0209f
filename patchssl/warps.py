"""Two views of an image whose geometry is known: from where in the image each shows what.

A view is a 3 x 3 homography that takes points (x, y) of the view, in its pixels, to points of the source image, in
float64 pixels of which pixel 0 covers [0, 1). The first view of a pair is a plain square crop. The second is a crop of
the same size moved by at most half its side, so that the place of a patch in the view says little about where to find
it, and beyond that each kind of warp adds what it is named after. All kinds of a pair share their numbers: `flip` and
`colour` show the very box of `crop`, so that what they add can be read off the difference.

Every view lies inside its image, so that there is nothing to fill in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Least and greatest side of a view over the shorter side of the image, before a zoom.
SIDE = (0.5, 0.7)
#: How far the second view moves at most, across and down, in sides of the view.
MOVE = 0.5
#: Least and greatest zoom of `scale`, in and out; out only as far as the image goes.
ZOOM = (2**0.5, 2.0)
#: How far `perspective` draws each corner in at most, across and down, in sides; below 1/3 the corners stay convex.
TILT = 0.25

#: How many uniform numbers a pair takes: side and place of the first view, place of the second, its zoom and corners.
NUM_PAIR_UNIFORMS = 14
_FIRST, _PLACE, _ZOOM, _CORNERS = slice(0, 3), slice(3, 5), 5, slice(6, 14)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What a kind of warp does beyond moving the crop.

    Attributes:
        zoom: the second view shows a larger or smaller part; one of the two views contains the other.
        mirror: left to right.
        tilt: perspective; each corner is drawn in by another amount.
        recolour: the colours change.
    """

    zoom: bool = False
    mirror: bool = False
    tilt: bool = False
    recolour: bool = False


#: In the order in which they are shown.
KINDS = {
    "crop": Kind(),
    "scale": Kind(zoom=True),
    "flip": Kind(mirror=True),
    "perspective": Kind(tilt=True),
    "colour": Kind(recolour=True),
    "all": Kind(zoom=True, mirror=True, tilt=True, recolour=True),
}


def draw_pair(
    uniforms: Sequence[float], kinds: Sequence[Kind], *, height_px: int, width_px: int, view_px: int
) -> NDArray[np.float64]:
    """Draw the first view of an image, and a second one of each kind.

    Args:
        uniforms: NUM_PAIR_UNIFORMS numbers in [0, 1).
        kinds: K of them.
        height_px: of the image.
        width_px: of the image.
        view_px: side of the views.

    Returns:
        (1 + K, 3, 3): view pixels to image pixels, the first view first.

    Raises:
        ValueError: there are not NUM_PAIR_UNIFORMS numbers.
    """
    if len(uniforms) != NUM_PAIR_UNIFORMS:
        raise ValueError(f"{len(uniforms)} uniform numbers; a pair of views takes {NUM_PAIR_UNIFORMS}")
    numbers = np.asarray(uniforms, dtype=np.float64)
    image = np.array([width_px, height_px], dtype=np.float64)
    side = _between(SIDE, numbers[_FIRST][0]) * image.min()
    corner = numbers[_FIRST][1:] * (image - side)
    views = [_box(corner, side, view_px)]
    for kind in kinds:
        its_side = _zoomed(side, numbers[_ZOOM], image.min()) if kind.zoom else side
        view = _box(_placed(corner, side, its_side, image, numbers[_PLACE]), its_side, view_px)
        if kind.tilt:
            view = view @ tilt(numbers[_CORNERS] * TILT, view_px)
        views.append(view @ mirror(view_px) if kind.mirror else view)
    return np.stack(views)


def _between(ends: tuple[float, float], number: float) -> float:
    return float(ends[0] + number * (ends[1] - ends[0]))


def _zoomed(side: float, number: float, most: float) -> float:
    """The side after a zoom in, for the lower half of the numbers, or out; log-uniform."""
    zooms_in = number < 0.5
    factor = 2 ** _between((float(np.log2(ZOOM[0])), float(np.log2(ZOOM[1]))), 2 * number % 1)
    return side / factor if zooms_in else min(side * factor, most)


def _placed(
    corner: NDArray[np.float64],
    side: float,
    its_side: float,
    image: NDArray[np.float64],
    numbers: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Corner (2,) of the second box: of equal size moved by up to MOVE sides, else so that one contains the other."""
    if its_side == side:
        low, high = corner - MOVE * side, corner + MOVE * side
    else:
        low, high = np.minimum(corner, corner + side - its_side), np.maximum(corner, corner + side - its_side)
    low, high = np.maximum(low, 0), np.minimum(high, image - its_side)
    return np.asarray(low + numbers * (high - low))


def _box(corner: NDArray[np.float64], side: float, view_px: int) -> NDArray[np.float64]:
    """The upright view of a square."""
    scale = side / view_px
    return np.array([[scale, 0, corner[0]], [0, scale, corner[1]], [0, 0, 1]])


def mirror(view_px: int) -> NDArray[np.float64]:
    """The view that shows a view left to right, (3, 3)."""
    return np.array([[-1.0, 0, view_px], [0, 1, 0], [0, 0, 1]])


def tilt(inwards: NDArray[np.float64], view_px: int) -> NDArray[np.float64]:
    """The view that shows, as a square, the part of a view that is left when its corners are drawn in.

    Args:
        inwards: (8,) in [0, 1/3), parts of the side: x and y of the corners top left, top right, bottom right and
            bottom left.
        view_px: side of the view.

    Returns:
        (3, 3).
    """
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64)
    corners = square + inwards.reshape(4, 2) * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    # x' (g x + h y + 1) = a x + b y + c, and the same for y': eight equations for eight numbers.
    rows = []
    for (x, y), (to_x, to_y) in zip(square, corners, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -x * to_x, -y * to_x])
        rows.append([0, 0, 0, x, y, 1, -x * to_y, -y * to_y])
    unit = np.append(np.linalg.solve(np.array(rows), corners.ravel()), 1).reshape(3, 3)
    size = np.diag([view_px, view_px, 1.0])
    return np.asarray(size @ unit @ np.linalg.inv(size))


def apply(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take points (..., M, 2), x and y, through a homography (..., 3, 3)."""
    moved = points @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]  # (..., M, 3)
    return np.asarray(moved[..., :2] / moved[..., 2:])


def patch_places(
    first: NDArray[np.float64], second: NDArray[np.float64], grid: tuple[int, int], *, view_px: int
) -> NDArray[np.float64]:
    """Where the patches of the first view lie in the second.

    Args:
        first: (..., 3, 3) view to image.
        second: (..., 3, 3) likewise.
        grid: (H, W) patches of both views.
        view_px: side of both views.

    Returns:
        (..., H * W, 2): x and y of the centres of the first view's patches, row-major, in patches of the second view,
        which fill [0, W) x [0, H).
    """
    side = view_px / np.array([grid[1], grid[0]])  # (2,)
    places = apply(np.linalg.inv(second) @ first, grid_centres(grid) * side)
    return np.asarray(places / side)


def grid_centres(grid: tuple[int, int]) -> NDArray[np.float64]:
    """The x and y of the centres of a grid's H x W patches, row-major, in patches: (H * W, 2)."""
    rows, columns = np.indices(grid, dtype=np.float64)
    return np.stack([columns.ravel(), rows.ravel()], axis=-1) + 0.5
