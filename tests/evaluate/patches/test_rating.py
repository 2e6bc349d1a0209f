import math

import numpy as np
import pytest
import torch
from torch import Tensor

from patchssl.evaluate.patches.rating import FLOORS, FOUND, RATERS, Tally, metric_name, rate
from patchssl.evaluate.patches.warped_pairs import WarpedViews
from patchssl.warps import KINDS, NUM_PAIR_UNIFORMS, apply, draw_pair, grid_centres, patch_places

RADII = (0.5, 1.0, 2.0)
GRID, VIEW = (6, 6), 24
UPRIGHT = ("crop", "scale", "flip")


def waves(positions: np.ndarray) -> Tensor:
    """Positions (..., 2) in [0, 1] → features of equal length, of which those of nearer points are more similar."""
    angles = torch.from_numpy(positions * math.pi).float()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def drawn(kinds: tuple[str, ...] = UPRIGHT, num: int = 20) -> WarpedViews:
    generator = np.random.default_rng(0)
    numbers = generator.uniform(size=(num, NUM_PAIR_UNIFORMS)).tolist()
    chosen = [KINDS[name] for name in kinds]
    matrices = np.stack([draw_pair(each, chosen, height_px=100, width_px=120, view_px=VIEW) for each in numbers])
    pixels = generator.integers(0, 256, (num, 1 + len(kinds), 3, VIEW, VIEW), dtype=np.uint8)
    return WarpedViews(torch.from_numpy(pixels), torch.from_numpy(matrices))


def oracle(views: WarpedViews) -> Tensor:
    """Features (B, V, N, 4) that tell where in the image each patch lies, and nothing else."""
    centres = grid_centres(GRID) * VIEW / GRID[0]
    return waves(apply(views.matrices.numpy(), np.broadcast_to(centres, (*views.matrices.shape[:2], 36, 2))) / 120)


def test_features_that_tell_the_place_find_every_patch() -> None:
    views = drawn()
    sums, num = rate(views, oracle(views), GRID, RADII)
    assert num.min() > 0
    for place in range(len(RADII)):
        torch.testing.assert_close(sums[FOUND][..., place], num.float())
    assert all((sums[name][..., 0] < num).any() for name in FLOORS)


def test_features_that_tell_the_place_in_a_tilted_view_are_never_far_off() -> None:
    # There the patch nearest in the image is not always the one that holds the point.
    views = drawn(("perspective", "all"))
    sums, num = rate(views, oracle(views), GRID, RADII)
    torch.testing.assert_close(sums[FOUND][..., 1], num.float())
    assert sums[FOUND][..., 0].sum() > 0.95 * num.sum()


def test_features_that_only_tell_the_place_in_the_grid_are_the_floor_position() -> None:
    views = drawn()
    features = waves(grid_centres(GRID) / 6).expand(*views.matrices.shape[:2], -1, -1)
    sums, num = rate(views, features, GRID, RADII)
    torch.testing.assert_close(sums[FOUND], sums["position"])
    assert 0 < sums["position"][..., 2].sum() < num.sum()


def test_constant_features_get_nothing_near() -> None:
    views = drawn()
    sums, _ = rate(views, torch.ones(*views.matrices.shape[:2], 36, 5), GRID, RADII)
    # The farthest of 6 patches is at least 3 away.
    assert not sums[FOUND].any()


def test_which_patches_count_and_what_chance_gives() -> None:
    views = drawn(num=4)
    features = torch.randn(4, 4, 36, 8, generator=torch.Generator().manual_seed(0))
    sums, num = rate(views, features, GRID, RADII)
    for image, matrices in enumerate(views.matrices.numpy()):
        for kind in range(3):
            places = patch_places(matrices[0], matrices[1 + kind], GRID, view_px=VIEW)
            inside = ((places >= 0) & (places < 6)).all(-1)
            assert num[image, kind] == inside.sum()
            every = np.abs(places[inside][:, None] - grid_centres(GRID)).max(-1)  # (n, N)
            chance = [(every <= radius).mean(-1).sum() for radius in RADII]
            assert sums["chance"][image, kind].tolist() == pytest.approx(chance, rel=1e-5)


def test_raw_patches_find_what_looks_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(0, 256, (1, 1, 3, VIEW, VIEW), generator=generator, dtype=torch.uint8)
    matrix = torch.eye(3, dtype=torch.float64).expand(1, 2, 3, 3)
    sums, num = rate(WarpedViews(one.expand(1, 2, 3, VIEW, VIEW), matrix), torch.ones(1, 2, 36, 3), GRID, RADII)
    assert num.tolist() == [[36]]
    assert sums["raw_patches"].tolist() == sums["position"].tolist() == [[[36, 36, 36]]]


def test_the_pairs_of_an_image_are_pooled_and_kinds_averaged() -> None:
    tally = Tally(np.array([3, 5, 8, 9]), ("crop", "flip"), (0.5, 1.0))
    hits = torch.tensor([[[1.0, 2], [0, 3]], [[3.0, 4], [0, 0]], [[1.0, 1], [0, 0]]])
    tally.add(np.array([8, 8, 3]), dict.fromkeys(RATERS, hits), torch.tensor([[4, 3], [4, 1], [2, 0]]))
    tally.add(np.array([9]), dict.fromkeys(RATERS, hits[:1]), torch.tensor([[4, 4]]))
    assert tally.is_read.tolist() == [True, False, True, True]
    values = {
        name: [None if math.isnan(value) else value for value in each] for name, each in tally.values(FOUND).items()
    }
    assert values == {
        "acc_at_0.5": [None, 0.25, 0.125],
        "acc_at_1": [None, 0.75, 0.625],
        "acc_at_0.5@crop": [0.5, 0.5, 0.25],
        "acc_at_0.5@flip": [None, 0, 0],
        "acc_at_1@crop": [0.5, 0.75, 0.5],
        "acc_at_1@flip": [None, 0.75, 0.75],
    }


def test_names() -> None:
    assert [metric_name(radius) for radius in RADII] == ["acc_at_0.5", "acc_at_1", "acc_at_2"]
    assert metric_name(1.0, "all") == "acc_at_1@all"
