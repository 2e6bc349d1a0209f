"""Whole batches of boxes resampled: against hand-made weights, the definition, Pillow and torch."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from patchssl.config import ViewsConfig
from patchssl.cutting import cut
from patchssl.resampling import axis_weights, resample
from patchssl.structs import Boxes, SampleKeys
from patchssl.views import MultiCrop

CPU = torch.device("cpu")


def weights(start: float, length: float, side: int, size: int) -> NDArray[np.float64]:
    found = axis_weights(torch.tensor(start).double(), torch.tensor(length).double(), side, size, device=CPU)
    return found.double().numpy()


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth, so that it hardly matters which axis is rounded first: Pillow chooses the cheaper one."""
    small = Image.fromarray(noise(height // 8, width // 8, 3, seed=seed))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def by_pillow(image: NDArray[np.uint8], box: list[float], side: int) -> NDArray[np.uint8]:
    """The pixels that a box touches, resized with what the box leaves of the outer ones."""
    top, left, height, width = box
    first = np.floor([top, left]).astype(int)
    last = np.ceil([top + height, left + width]).astype(int)
    touched = Image.fromarray(image[first[0] : last[0], first[1] : last[1]])
    edges = (left - first[1], top - first[0], left - first[1] + width, top - first[0] + height)
    return np.asarray(touched.resize((side, side), Image.Resampling.BICUBIC, box=edges))


def resampled(image: NDArray[np.uint8], box: list[float], side: int, *, flip: bool = False) -> NDArray[np.uint8]:
    boxes = Boxes(torch.tensor([[box]], dtype=torch.float64), torch.tensor([[flip]]))
    found = resample(torch.from_numpy(image).permute(2, 0, 1)[None], boxes, side)
    assert found.shape == (1, 1, 3, side, side)
    assert found.dtype == torch.uint8
    return found[0, 0].permute(1, 2, 0).numpy()


def test_weights_by_hand() -> None:
    """Of Keys' kernel at distances 1/4, 3/4, 5/4 and 7/4: 0.8671875, 0.2265625, -0.0703125, -0.0234375."""
    # Doubling 4 pixels: the first view pixel stands at 0.25, a quarter left of the centre of the first pixel.
    near = np.array([0.8671875, 0.2265625, -0.0703125, -0.0234375])
    rows = weights(0, 4, 8, 4)
    # Left of the image there is nothing to count: pixels at distances 1/4, 3/4 (outside), 5/4, 7/4 (outside).
    assert np.allclose(rows[0], np.array([near[0], near[2], 0, 0]) / (near[0] + near[2]), atol=1e-6)
    assert np.allclose(rows[3], [near[2], near[0], near[1], near[3]], atol=1e-6)
    # Halving: the kernel is twice as wide, pixels lie at distances 1/4, 3/4, 5/4, 7/4 on both sides.
    halved = weights(0, 16, 8, 16)
    both = np.concatenate((near[::-1], near)) / (2 * near.sum())
    assert np.allclose(halved[3, 3:11], both, atol=1e-6)
    assert np.allclose(np.delete(halved[3], range(3, 11)), 0)


def test_nothing_changes_at_full_size() -> None:
    assert np.allclose(weights(0, 7, 7, 7), np.eye(7), atol=1e-6)
    assert np.allclose(weights(2, 5, 5, 9), np.eye(9)[2:7], atol=1e-6)
    image = noise(9, 9, 3)
    assert np.array_equal(resampled(image, [0, 0, 9, 9], 9), image)
    assert np.array_equal(resampled(image, [0, 0, 9, 9], 9, flip=True), image[:, ::-1])


@pytest.mark.parametrize(
    ("start", "length", "side", "size"), [(0.3, 10.4, 16, 30), (20.6, 9.4, 4, 30), (0, 30, 7, 30), (5.5, 0.25, 3, 30)]
)
def test_weights_from_the_definition(start: float, length: float, side: int, size: int) -> None:
    expected = np.zeros((side, size))
    step = length / side
    for row in range(side):
        for pixel in range(int(np.floor(start)), int(np.ceil(start + length))):
            distance = abs(pixel + 0.5 - (start + (row + 0.5) * step)) / max(step, 1)
            if distance < 1:
                expected[row, pixel] = 1.5 * distance**3 - 2.5 * distance**2 + 1
            elif distance < 2:
                expected[row, pixel] = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        expected[row] /= expected[row].sum()
    found = weights(start, length, side, size)
    assert np.allclose(found, expected, atol=2e-5)
    assert np.allclose(found.sum(1), 1, atol=1e-5)


def test_positions_stay_exact_far_into_an_image() -> None:
    """At 60,000 px float32 knows 1/256 px only, which a steep part of the kernel would show by as much."""
    near, far = weights(3.3, 40.7, 16, 64), weights(60_003.3, 40.7, 16, 60_064)
    assert np.allclose(far[:, 60_000:], near, atol=1e-3 / 4)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("box", "side"),
    [
        ([0, 0, 40, 60], 16),
        ([3.25, 5.5, 20.4, 13.7], 8),
        ([10.1, 30.3, 4.2, 5.1], 24),
        ([0, 56.9, 40, 3.1], 5),
        ([7, 9, 33, 41], 32),
    ],
)
def test_equal_to_pillow(box: list[float], side: int, flip: bool) -> None:
    """But for roundings where Pillow's whole-number weights tip a half the other way."""
    image = picture(40, 60)
    expected = by_pillow(image, box, side).astype(int)
    found = resampled(image, box, side, flip=flip)[:, ::-1] if flip else resampled(image, box, side)
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).sum() <= max(3, 0.02 * expected.size)
    one_by_one = cut(image, box, side).permute(1, 2, 0).numpy()
    assert np.abs(one_by_one - expected).max() <= 1
    assert (one_by_one != expected).sum() <= max(3, 0.02 * expected.size)


@pytest.mark.parametrize(("size", "side"), [((40, 60), 16), ((20, 30), 48)])
def test_whole_boxes_equal_torch(size: tuple[int, int], side: int) -> None:
    image = noise(*size, 3)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    found = resampled(image, [0.0, 0.0, *map(float, size)], side).astype(int)
    assert np.abs(found - expected.numpy()).max() <= 1


def test_each_image_and_view_has_a_box_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are computed at a time, and whatever lies beyond an image."""
    keys = SampleKeys(torch.zeros(5, dtype=torch.int64), torch.arange(5))
    sizes = torch.tensor([(33, 44), (50, 20), (12, 12), (64, 64), (40, 61)])
    plan = MultiCrop(ViewsConfig(global_size=16, local_size=8, num_local=3), 1).plan(sizes, keys)
    images = torch.stack([torch.from_numpy(picture(64, 64, seed)).permute(2, 0, 1) for seed in range(5)])
    whole = [resample(images, boxes, side) for boxes, side in zip(plan.boxes, plan.sides, strict=True)]
    for number, (height, width) in enumerate(sizes.tolist()):
        changed = images.clone()
        changed[number, :, height:], changed[number, :, :, width:] = 77, 99
        assert not torch.equal(changed, images) or (height, width) == (64, 64)
        image = changed[number].permute(1, 2, 0).numpy()
        for views, boxes, side in zip(whole, plan.boxes, plan.sides, strict=True):
            alone = resample(changed[number : number + 1], boxes[number : number + 1], side)[0]
            assert torch.equal(alone, views[number])
            for view, corners, flip in zip(views[number], boxes.corners[number], boxes.flipped[number], strict=True):
                expected = by_pillow(image, corners.tolist(), side).astype(int)
                shown = view.permute(1, 2, 0).numpy()
                assert np.abs((shown[:, ::-1] if flip else shown) - expected).max() <= 1
    monkeypatch.setattr("patchssl.resampling._CPU_WORKSPACE_BYTES", 1)
    for views, boxes, side in zip(whole, plan.boxes, plan.sides, strict=True):
        assert torch.equal(resample(images, boxes, side), views)


def test_no_images() -> None:
    boxes = Boxes(torch.empty(0, 2, 4, dtype=torch.float64), torch.empty(0, 2, dtype=torch.bool))
    assert resample(torch.empty(0, 3, 8, 8, dtype=torch.uint8), boxes, 4).shape == (0, 2, 3, 4, 4)


def test_one_colour_stays() -> None:
    image = np.full((30, 50, 3), (3, 200, 90), dtype=np.uint8)
    for box, side in (([0.4, 0.2, 9.9, 3.3], 16), ([0.0, 0.0, 30.0, 50.0], 7)):
        assert (resampled(image, box, side) == (3, 200, 90)).all()
