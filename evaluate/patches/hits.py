"""Patches found again by nearest neighbour: features and geometry in, distances to the truth out.

Distances are the larger of those across and down, in patches. So a distance of at most 0.5 means that the patch found
holds the point looked for, and the best patch is never farther: a perfect method has an accuracy of 1 within any radius
from 0.5 on, whatever the grid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_CHUNK_VALUES = 8_000_000
# Cosines nearer than this are equal: single precision cannot tell them apart.
_SAME = 1e-6


def found_distances(first: Tensor, second: Tensor, places: Tensor, grid: tuple[int, int]) -> Tensor:
    """How far from the truth the most similar patch of the second view lies, by cosine.

    Of equally similar patches the farthest counts, so that ties never help: constant features find the farthest corner.

    Args:
        first: (P, N, D) features of the patches of the first view of P pairs.
        second: (P, N, D) of the second.
        places: (P, N, 2) where the first view's patches lie in the second: x and y in patches.
        grid: (H, W) with H * W = N.

    Returns:
        (P, N) in patches.
    """
    centres = _centres(grid, places)
    rows = max(1, _CHUNK_VALUES // max(1, first.shape[1] * second.shape[1]))
    found = []
    for one, other, place in zip(first.split(rows), second.split(rows), places.split(rows), strict=True):
        cosines = functional.normalize(one, dim=-1) @ functional.normalize(other, dim=-1).mT  # (p, N, N)
        nearest = cosines >= cosines.amax(-1, keepdim=True) - _SAME
        found.append(_distances(place[:, :, None], centres).masked_fill_(~nearest, -1).amax(-1))
    return torch.cat(found) if found else places.new_empty(places.shape[:2])


def position_distances(places: Tensor, grid: tuple[int, int]) -> Tensor:
    """How far from the truth the patch at the same place of the grid lies: (P, N, 2) → (P, N)."""
    return _distances(places, _centres(grid, places))


def within(distances: Tensor, radii: Sequence[float]) -> Tensor:
    """Whether distances (P, N) are at most each of R radii: (P, N, R), 0 or 1, as floats."""
    return (distances[..., None] <= distances.new_tensor(radii)).to(distances.dtype)


def chance_within(places: Tensor, grid: tuple[int, int], radii: Sequence[float]) -> Tensor:
    """How probably a patch of the second view drawn uniformly lies within each of R radii: (P, N, 2) → (P, N, R)."""
    reach = places.new_tensor(radii)
    shares = []
    for axis, num in ((0, grid[1]), (1, grid[0])):
        along = torch.arange(num, device=places.device, dtype=places.dtype) + 0.5
        near = (places[..., axis, None] - along).abs()  # (P, N, num)
        shares.append((near[..., None] <= reach).to(places.dtype).mean(-2))
    # Being near across and being near down are independent.
    return shares[0] * shares[1]


def pixel_patches(pixels: Tensor, grid: tuple[int, int], cells: int) -> Tensor:
    """Describe patches by their pixels, averaged to cells x cells each.

    Args:
        pixels: (B, C, h, w) float.
        grid: (H, W).
        cells: along each side of a patch.

    Returns:
        (B, H * W, C * cells * cells).
    """
    size = (grid[0] * cells, grid[1] * cells)
    averaged = functional.adaptive_avg_pool2d(pixels, size)
    return functional.unfold(averaged, cells, stride=cells).mT  # (B, H * W, C * cells ** 2)


def _centres(grid: tuple[int, int], like: Tensor) -> Tensor:
    """The x and y (N, 2) of the patches' centres."""
    rows, columns = (torch.arange(num, device=like.device, dtype=like.dtype) + 0.5 for num in grid)
    return torch.stack([columns.repeat(grid[0]), rows.repeat_interleave(grid[1])], dim=-1)


def _distances(places: Tensor, centres: Tensor) -> Tensor:
    """The larger of the distances across and down, (..., 2) and (..., 2) → (...)."""
    # Axis by axis, which keeps no differences of both at once.
    across = (places[..., 0] - centres[..., 0]).abs_()
    return torch.maximum(across, (places[..., 1] - centres[..., 1]).abs_(), out=across)
