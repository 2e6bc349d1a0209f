"""Position embeddings of one grid → of another. Projects differ in how they do it, and features with them."""

from collections.abc import Callable

from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor
from torch.nn.functional import interpolate

Resampling = Callable[[Tensor, int, tuple[int, int]], Tensor]


def resample_dino(positions: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """As DINO, iBOT, PW-Self and DINOv2 without registers do it.

    Bicubic without antialiasing, by a scale factor that has 0.1 of a cell added; the factor, not the size, decides
    where the embedding is sampled. A grid of as many cells and another shape is resampled, too.

    Args:
        positions: (1, side * side, D), row-major.
        side: of the grid that they were learned on.
        grid: (H, W) wanted.

    Returns:
        (1, H * W, D); the same tensor where the grid is the learned one.
    """
    if grid == (side, side):
        return positions
    factors = tuple((cells + 0.1) / side for cells in grid)
    found = interpolate(_as_image(positions, side), scale_factor=factors, mode="bicubic")
    return _as_tokens(found, grid)


def resample_dinov2_registers(positions: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """As DINOv2 with registers does it: bicubic with antialiasing, by size. Arguments as of `resample_dino`."""
    if grid == (side, side):
        return positions
    return _as_tokens(interpolate(_as_image(positions, side), size=grid, mode="bicubic", antialias=True), grid)


def resample_timm(positions: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """As timm does it, by timm's own function. Arguments as of `resample_dino`."""
    found: Tensor = resample_abs_pos_embed(positions, new_size=list(grid), old_size=[side, side], num_prefix_tokens=0)
    return found


RESAMPLINGS: dict[str, Resampling] = {
    "dino": resample_dino,
    "dinov2-reg": resample_dinov2_registers,
    "timm": resample_timm,
}


def _as_image(positions: Tensor, side: int) -> Tensor:
    cells: Tensor = positions.float().unflatten(1, (side, side))
    return cells.permute(0, 3, 1, 2)  # (1, D, side, side)


def _as_tokens(image: Tensor, grid: tuple[int, int]) -> Tensor:
    assert tuple(image.shape[-2:]) == grid, (image.shape, grid)
    return image.flatten(2).mT  # (1, H * W, D)
