import numpy as np
import pytest
import torch
from torch import Tensor

from patchssl.evaluate.patches import hits as patch_hits
from patchssl.evaluate.patches.hits import chance_within, found_distances, pixel_patches, position_distances, within

RADII = (0.5, 1.0, 2.0)


def centres(grid: tuple[int, int]) -> Tensor:
    return torch.tensor([[column + 0.5, row + 0.5] for row in range(grid[0]) for column in range(grid[1])])


def drawn(grid: tuple[int, int], num: int = 5, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    cells = grid[0] * grid[1]
    first, second = torch.randn(2, num, cells, width, generator=generator)
    return first, second, torch.rand(num, cells, 2, generator=generator) * torch.tensor([grid[1], grid[0]])


def test_a_flip_of_a_2_x_2_grid_by_hand() -> None:
    features = torch.eye(4)[None]
    places = torch.tensor([[[1.5, 0.5], [0.5, 0.5], [1.5, 1.5], [0.5, 1.5]]])
    # Features that do not move with the image find the patch on the other side, those that do the right one.
    assert found_distances(features, features, places, (2, 2)).tolist() == [[1, 1, 1, 1]]
    assert found_distances(features, features[:, [1, 0, 3, 2]], places, (2, 2)).tolist() == [[0, 0, 0, 0]]
    assert position_distances(places, (2, 2)).tolist() == [[1, 1, 1, 1]]


def test_the_larger_of_across_and_down_counts() -> None:
    features = torch.eye(6)[None]
    places = centres((2, 3))[None] + torch.tensor([0.25, -0.75])
    assert found_distances(features, features, places, (2, 3)).tolist() == [[0.75] * 6]
    # Patch 0 is found again as patch 1, one further right; patch 1 as patch 0.
    moved = features[:, [1, 0, 2, 3, 4, 5]]
    assert found_distances(features, moved, places + torch.tensor([0, 0.75]), (2, 3))[0, :2].tolist() == [0.75, 1.25]


def test_hits_within_radii_by_hand() -> None:
    hits = within(torch.tensor([[0.0, 0.5, 0.51, 1.0, 2.5]]), RADII)
    assert hits.tolist() == [[[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 0]]]


def test_ties_never_help() -> None:
    same = torch.ones(1, 9, 4)
    places = centres((3, 3))[None]
    # From a corner, an edge and the middle the farthest patch.
    assert found_distances(same, same, places, (3, 3)).tolist() == [[2, 2, 2, 2, 1, 2, 2, 2, 2]]
    zero = torch.zeros(1, 9, 4)
    assert found_distances(zero, zero, places, (3, 3)).tolist() == [[2, 2, 2, 2, 1, 2, 2, 2, 2]]
    # Two equals of which one is right.
    second = torch.eye(9)[None].clone()
    second[0, 8] = second[0, 0]
    assert found_distances(torch.eye(9)[None], second, places, (3, 3))[0, 0] == 2
    # Equal but for the last bits.
    second[0, 8] *= 1 + 3e-7
    assert found_distances(torch.eye(9)[None], second, places, (3, 3))[0, 0] == 2


@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_distances_from_their_definition(grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, places = drawn(grid)
    middle = centres(grid)
    expected = torch.empty(places.shape[:2])
    for pair in range(len(first)):
        for patch in range(first.shape[1]):
            cosines = torch.cosine_similarity(first[pair, patch][None], second[pair])
            expected[pair, patch] = (middle[cosines.argmax()] - places[pair, patch]).abs().max()
    torch.testing.assert_close(found_distances(first, second, places, grid), expected)
    monkeypatch.setattr(patch_hits, "_CHUNK_VALUES", 1)
    torch.testing.assert_close(found_distances(first, second, places, grid), expected)


def test_neither_scale_nor_batch_change_anything() -> None:
    first, second, places = drawn((4, 4))
    expected = found_distances(first, second, places, (4, 4))
    torch.testing.assert_close(found_distances(first * 7, second * 0.01, places, (4, 4)), expected)
    torch.testing.assert_close(found_distances(first[2:3], second[2:3], places[2:3], (4, 4)), expected[2:3])


def test_no_pairs() -> None:
    empty = torch.empty(0, 4, 3)
    assert found_distances(empty, empty, torch.empty(0, 4, 2), (2, 2)).shape == (0, 4)


def test_the_nearest_patch_is_always_within_half_a_patch() -> None:
    grid = (5, 7)
    generator = torch.Generator().manual_seed(1)
    places = torch.rand(1, 4000, 2, generator=generator) * torch.tensor([7.0, 5.0])
    places[0, :35] = centres(grid) - 0.5  # on the very corners
    nearest = (places[0, :, None] - centres(grid)).abs().amax(-1).amin(-1)
    assert within(nearest[None], [0.5]).all()


def test_chance_by_hand_and_by_counting() -> None:
    # From the middle of a corner patch of 3 x 3: itself; no other within 0.5, three within 1, eight within 2.
    assert chance_within(torch.tensor([[[0.5, 0.5]]]), (3, 3), RADII)[0, 0].tolist() == pytest.approx([1 / 9, 4 / 9, 1])
    for grid in ((3, 3), (2, 5)):
        _, _, places = drawn(grid)
        every = (places[:, :, None] - centres(grid)).abs().amax(-1)  # (P, N, N)
        counted = torch.stack([(every <= radius).float().mean(-1) for radius in RADII], dim=-1)
        torch.testing.assert_close(chance_within(places, grid, RADII), counted)


def test_pixels_of_patches_by_hand() -> None:
    pixels = torch.arange(32.0).reshape(1, 1, 4, 8)
    made = pixel_patches(pixels, (1, 2), 2)
    # Each patch of 4 x 4 px averaged to 2 x 2.
    assert made.tolist() == [[[4.5, 6.5, 20.5, 22.5], [8.5, 10.5, 24.5, 26.5]]]
    images = torch.from_numpy(np.random.default_rng(0).uniform(size=(2, 3, 8, 12)))
    every = pixel_patches(images, (2, 3), 4)
    assert every.shape == (2, 6, 48)
    torch.testing.assert_close(every[1, 4], images[1, :, 4:8, 4:8].reshape(48))
