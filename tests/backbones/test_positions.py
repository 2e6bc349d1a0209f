from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from patchssl.backbones.positions import RESAMPLINGS, resample_dino, resample_dinov2_registers, resample_timm

GRIDS = [(4, 4), (3, 3), (7, 7), (2, 5), (2, 8), (1, 1)]


def positions(side: int = 4, dim: int = 3) -> Tensor:
    return torch.randn(1, side * side, dim, generator=torch.Generator().manual_seed(0))


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def slowly(values: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """DINO's resampling from the definition: cell centres at (r + 1/2) / factor - 1/2, edges repeated."""
    image = values[0].unflatten(0, (side, side))
    out = torch.zeros(*grid, values.shape[2])
    for row in range(grid[0]):
        for column in range(grid[1]):
            y = (row + 0.5) * side / (grid[0] + 0.1) - 0.5
            x = (column + 0.5) * side / (grid[1] + 0.1) - 0.5
            top, left = int(y // 1), int(x // 1)
            for i in range(top - 1, top + 3):
                for j in range(left - 1, left + 3):
                    near = image[min(max(i, 0), side - 1), min(max(j, 0), side - 1)]
                    out[row, column] += cubic(y - i) * cubic(x - j) * near
    return out.flatten(0, 1)[None]


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid != (4, 4)])
def test_dino_equals_its_definition(grid: tuple[int, int]) -> None:
    torch.testing.assert_close(resample_dino(positions(), 4, grid), slowly(positions(), 4, grid), rtol=0, atol=1e-5)


def test_by_hand() -> None:
    # From 2 cells to 1: with the factor 1.1 / 2 the centre lies at 0.5 / 0.55 - 0.5 = 0.409, by size at 0.5.
    ramp = torch.tensor([0.0, 1.0, 0.0, 1.0]).view(1, 4, 1)
    x = 0.5 / 0.55 - 0.5
    expected = cubic(x - 1) + cubic(x - 2)
    assert float(resample_dino(ramp, 2, (1, 1))) == pytest.approx(expected, abs=1e-6)
    assert float(resample_dinov2_registers(ramp, 2, (1, 1))) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("resample", RESAMPLINGS.values())
@pytest.mark.parametrize("grid", GRIDS)
def test_shapes_and_identity(resample: Callable[..., Tensor], grid: tuple[int, int]) -> None:
    found = resample(positions(), 4, grid)
    assert found.shape == (1, grid[0] * grid[1], 3)
    if grid == (4, 4):
        assert torch.equal(found, positions())
    constant = resample(torch.ones(1, 16, 2), 4, grid)
    torch.testing.assert_close(constant, torch.ones_like(constant))


def test_as_many_cells_in_another_shape_are_resampled() -> None:
    # DINO leaves the embedding alone only if the image is square as well.
    for resample in RESAMPLINGS.values():
        assert (resample(positions(), 4, (2, 8)) - positions()).abs().max() > 0.1


def test_registers_and_timm_agree_and_dino_differs() -> None:
    for grid in [(3, 3), (7, 7), (2, 8)]:
        by_size = resample_dinov2_registers(positions(), 4, grid)
        torch.testing.assert_close(by_size, resample_timm(positions(), 4, grid), rtol=0, atol=1e-6)
        assert (by_size - resample_dino(positions(), 4, grid)).abs().max() > 0.01


def test_timm_is_what_timm_does() -> None:
    network = VisionTransformer(img_size=32, patch_size=8, embed_dim=6, depth=0, num_heads=1, dynamic_img_size=True)
    patches = torch.zeros(1, 5, 2, 6)
    found = network._pos_embed(patches)[:, 1:]
    assert network.pos_embed is not None
    torch.testing.assert_close(found, resample_timm(network.pos_embed[:, 1:], 4, (5, 2)))
