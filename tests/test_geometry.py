"""Crop boxes, flips and patch centres."""

import math

import pytest
import torch

from patchssl.errors import ConfigError
from patchssl.geometry import NUM_BOX_UNIFORMS, draw_boxes, draw_flips, patch_centres
from patchssl.structs import Boxes

Box = tuple[float, float, float, float]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, NUM_BOX_UNIFORMS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_box(
    uniforms: list[float], height: float, width: float, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Random resized cropping, attempt after attempt."""
    for attempt in range(10):
        area = height * width * (scale[0] + uniforms[attempt] * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + uniforms[10 + attempt] * (math.log(ratio[1]) - math.log(ratio[0])))
        box_width, box_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if box_width <= width and box_height <= height:
            return uniforms[20] * (height - box_height), uniforms[21] * (width - box_width), box_height, box_width
    if width / height < ratio[0]:
        box_width, box_height = width, width / ratio[0]
    elif width / height > ratio[1]:
        box_width, box_height = height * ratio[1], height
    else:
        box_width, box_height = width, height
    return (height - box_height) / 2, (width - box_width) / 2, box_height, box_width


def test_box_worked_by_hand() -> None:
    uniforms = torch.zeros(NUM_BOX_UNIFORMS)
    uniforms[0], uniforms[10] = 0.0, 0.5  # a quarter of the area, square
    uniforms[20], uniforms[21] = 0.5, 0.25
    box = draw_boxes(uniforms, torch.tensor(40), torch.tensor(40), scale=(0.25, 1.0))
    torch.testing.assert_close(box, torch.tensor([10.0, 5.0, 20.0, 20.0], dtype=torch.float64))


def test_first_fitting_attempt_is_kept() -> None:
    uniforms = torch.zeros(NUM_BOX_UNIFORMS, dtype=torch.float64)
    uniforms[10:20] = 1.0  # 4 : 3, too wide for a square at full area
    uniforms[12] = 0.5  # but the third attempt is square
    box = draw_boxes(uniforms, torch.tensor(60), torch.tensor(60), scale=(1.0, 1.0))
    torch.testing.assert_close(box, torch.tensor([0.0, 0.0, 60.0, 60.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 100, (0, (100 - 40 / 3) / 2, 10, 40 / 3)), (100, 30, (30, 0, 40, 30)), (100, 120, (0, 0, 100, 120))],
)
def test_central_box_where_nothing_fits(height: int, width: int, expected: Box) -> None:
    uniforms = torch.zeros(NUM_BOX_UNIFORMS, dtype=torch.float64)
    uniforms[10:20] = 0.0 if width > height else 1.0  # the wrong way round at full area, ten times
    box = draw_boxes(uniforms, torch.tensor(height), torch.tensor(width), scale=(1.0, 1.0))
    torch.testing.assert_close(box, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("scale", [(0.4, 1.0), (0.05, 0.4), (1.0, 1.0)])
def test_boxes_equal_the_slow_implementation(scale: tuple[float, float]) -> None:
    sizes = torch.tensor([(1, 1), (32, 32), (200, 60), (60, 200), (480, 640)]).repeat(40, 1)
    uniforms, ratio = numbers(len(sizes)), (3 / 4, 4 / 3)
    boxes = draw_boxes(uniforms, sizes[:, 0], sizes[:, 1], scale=scale, ratio=ratio)
    slow = [
        slow_box(row, height, width, scale, ratio)
        for row, (height, width) in zip(uniforms.tolist(), sizes.tolist(), strict=True)
    ]
    torch.testing.assert_close(boxes, torch.tensor(slow, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (37, 500), (500, 37)])
def test_boxes_lie_in_the_image(height: int, width: int) -> None:
    boxes = draw_boxes(numbers(2000), torch.full((2000,), height), torch.full((2000,), width), scale=(0.05, 1.0))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] > 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height * (1 + 1e-12)).all()
    assert (boxes[:, 1] + boxes[:, 3] <= width * (1 + 1e-12)).all()


def test_law_of_area_ratio_and_position() -> None:
    """Of a square image and areas up to a half every first attempt fits, so the law is that of the attempt."""
    boxes = draw_boxes(numbers(20000), torch.full((20000,), 64), torch.full((20000,), 64), scale=(0.1, 0.5))
    area = boxes[:, 2] * boxes[:, 3] / 64**2
    ratio = (boxes[:, 3] / boxes[:, 2]).log()
    for values, low, high in (
        (area, 0.1, 0.5),
        (ratio, math.log(3 / 4), math.log(4 / 3)),
        (boxes[:, 0] / (64 - boxes[:, 2]), 0, 1),
        (boxes[:, 1] / (64 - boxes[:, 3]), 0, 1),
    ):
        levels = torch.linspace(0, 1, 11, dtype=torch.float64)
        quantiles = torch.quantile(values, levels)
        torch.testing.assert_close(quantiles, low + levels * (high - low), rtol=0, atol=0.02 * (high - low))


def test_leading_dimensions_and_no_boxes() -> None:
    uniforms = numbers(3, 5)
    sizes = torch.tensor([20, 40, 80])[:, None].expand(3, 5)
    boxes = draw_boxes(uniforms, sizes, sizes, scale=(0.1, 0.9))
    assert boxes.shape == (3, 5, 4)
    assert boxes.dtype == torch.float64
    assert torch.equal(boxes[2, 4], draw_boxes(uniforms[2, 4], sizes[2, 4], sizes[2, 4], scale=(0.1, 0.9)))
    assert draw_boxes(numbers(0), torch.ones(0), torch.ones(0), scale=(0.1, 0.9)).shape == (0, 4)


@pytest.mark.parametrize("scale", [(0.0, 0.5), (0.6, 0.5), (0.5, 1.1)])
def test_scale_without_a_meaning_is_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="crop scale"):
        draw_boxes(numbers(1), torch.ones(1), torch.ones(1), scale=scale)


def test_ratio_and_shape_without_a_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match="crop ratio"):
        draw_boxes(numbers(1), torch.ones(1), torch.ones(1), scale=(0.5, 1), ratio=(2, 1))
    with pytest.raises(ValueError, match=f"a box takes {NUM_BOX_UNIFORMS}"):
        draw_boxes(torch.rand(1, 3), torch.ones(1), torch.ones(1), scale=(0.5, 1))


def test_flips() -> None:
    uniforms = torch.tensor([[0.0, 0.4], [0.5, 0.9]])
    assert draw_flips(uniforms).tolist() == [[True, True], [False, False]]
    assert not draw_flips(uniforms, 0.0).any()
    assert draw_flips(uniforms, 1.0).all()
    with pytest.raises(ConfigError, match="flip probability"):
        draw_flips(uniforms, 1.5)


def test_patch_centres_worked_by_hand() -> None:
    corners = torch.tensor([[10.0, 20.0, 8.0, 12.0]] * 2, dtype=torch.float64)
    centres = patch_centres(Boxes(corners, torch.tensor([False, True])), (2, 3))
    assert centres[0].tolist() == [[12, 22], [12, 26], [12, 30], [16, 22], [16, 26], [16, 30]]
    assert centres[1].tolist() == [[12, 30], [12, 26], [12, 22], [16, 30], [16, 26], [16, 22]]


def test_patch_centres_lie_in_the_box_and_average_to_its_middle() -> None:
    corners = torch.rand(4, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 50 + 1
    flipped = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    centres = patch_centres(Boxes(corners, flipped), (5, 4))
    assert centres.shape == (4, 6, 20, 2)
    start, length = corners[..., None, :2], corners[..., None, 2:]
    assert ((centres > start) & (centres < start + length)).all()
    torch.testing.assert_close(centres.mean(2), (start + length / 2).squeeze(2))
    assert torch.equal(
        patch_centres(Boxes(corners, ~flipped), (5, 4)), centres.unflatten(2, (5, 4)).flip(3).flatten(2, 3)
    )
