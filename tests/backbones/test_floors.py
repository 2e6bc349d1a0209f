import numpy as np
import pytest
import torch
from PIL import Image

from patchssl.backbones import Preprocess, load_backbone
from patchssl.backbones.floors import FLOORS, floor_preprocess
from patchssl.errors import ConfigError

HALF = Preprocess(image_px=2, resize_px=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 1.0))


def test_mean_colour_of_a_worked_table() -> None:
    floor = load_backbone("floor:mean-colour")
    # Red 0, 1, 0, 1; green 0.2, 0.2, 0.2, 0.2; blue 0, 0, 0, 1.
    pixels = torch.tensor([[[0.0, 1], [0, 1]], [[0.2, 0.2], [0.2, 0.2]], [[0, 0], [0, 1]]])
    tokens = floor.forward(torch.stack([pixels, torch.zeros(3, 2, 2)]))
    torch.testing.assert_close(tokens.cls, torch.tensor([[0.5, 0.2, 0.25], [0, 0, 0]]))
    assert torch.equal(tokens.patches, tokens.cls[:, None])
    assert tokens.grid == (1, 1)


def test_raw_pixels_of_a_worked_table() -> None:
    floor = load_backbone("floor:raw-pixels")
    # Cells of 2 x 2 px: the cell (r, c) of channel k holds r + 100 c + 10,000 k, one pixel 4 above and one 4 below.
    rows, columns = torch.arange(16.0)[:, None], torch.arange(16.0)[None]
    cells = torch.stack([rows + 100 * columns + 10_000 * channel for channel in range(3)])
    pixels = cells.repeat_interleave(2, 1).repeat_interleave(2, 2)
    pixels[:, ::2, ::2] += 4
    pixels[:, 1::2, 1::2] -= 4
    found = floor.forward(pixels[None]).cls
    assert torch.equal(found, cells.reshape(1, 768))
    assert found[0, 16 * 3 + 5].item() == 3 + 500


@pytest.mark.parametrize("side", [8, 16, 32, 37, 112])
def test_cells_equal_the_definition_at_any_size(side: int) -> None:
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    found = load_backbone("floor:raw-pixels").forward(pixels).cls.reshape(2, 3, 16, 16)
    for row, column in ((0, 0), (3, 7), (15, 15)):
        # From floor(r h / 16) to ceil((r + 1) h / 16).
        top, bottom = row * side // 16, -(-(row + 1) * side // 16)
        left, right = column * side // 16, -(-(column + 1) * side // 16)
        expected = pixels[:, :, top:bottom, left:right].mean((2, 3))
        torch.testing.assert_close(found[:, :, row, column], expected)


def test_a_crop_of_an_image_is_normalised_by_imagenet() -> None:
    floor = load_backbone("floor:mean-colour").at_size(32)
    crop = floor.preprocess.crop(Image.new("RGB", (50, 40), (255, 51, 0)))
    found = floor.forward(floor.preprocess.normalise(crop[None])).cls[0].numpy()
    expected = (np.array([1, 0.2, 0]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", FLOORS)
def test_facts(name: str) -> None:
    floor = load_backbone(f"floor:{name}")
    dim = {"mean-colour": 3, "raw-pixels": 768}[name]
    assert (floor.family, floor.dim, floor.num_params, floor.num_blocks) == ("floor", dim, 0, 1)
    assert floor.forward(torch.zeros(1, 3, 224, 224)).cls.shape == (1, dim)
    assert floor.device == torch.device("cpu")
    assert floor.at_size(33).preprocess.image_px == 33
    with pytest.raises(ConfigError, match="no attention"):
        floor.attention(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="allowed: 1 to 1"):
        floor.last_blocks(torch.zeros(1, 3, 32, 32), 2)


def test_floors_are_told_apart_by_their_hash_and_the_architecture_states_the_size() -> None:
    floors = [load_backbone(f"floor:{name}") for name in FLOORS]
    assert len({floor.weights_sha256 for floor in floors}) == len(FLOORS)
    assert floors[1].arch == "raw-pixels-16x16"


def test_the_crops_of_another_backbone_in_the_own_normalisation() -> None:
    floor = load_backbone("floor:mean-colour")
    there = floor_preprocess(HALF)
    assert (there.image_px, there.resize_px) == (2, 2)
    assert (there.mean, there.std) == (floor.preprocess.mean, floor.preprocess.std)


def test_an_unknown_floor_is_refused() -> None:
    with pytest.raises(ConfigError, match="no floor 'floor:median'; allowed: floor:mean-colour, floor:raw-pixels"):
        load_backbone("floor:median")
