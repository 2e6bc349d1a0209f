"""Multi-crop: what a view shows, and that only its own key decides it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from patchssl.config import ViewsConfig
from patchssl.cutting import ViewsByWorkers
from patchssl.geometry import patch_centres
from patchssl.structs import SampleKeys, ViewGroup
from patchssl.views import MultiCrop, crop


def keys(*index: int, epoch: int = 0) -> SampleKeys:
    return SampleKeys(torch.full((len(index),), epoch), torch.tensor(index))


def multicrop(config: ViewsConfig, seed: int, images: list[Image.Image], keys: SampleKeys) -> list[ViewGroup]:
    """Draw boxes and cut them out."""
    division = ViewsByWorkers(MultiCrop(config, seed))
    sizes = torch.tensor([(image.height, image.width) for image in images])
    plan = division.plan(sizes, keys, torch.zeros(len(images), dtype=torch.bool))
    return division.make([np.asarray(image) for image in images], plan)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def gradient(height: int, width: int) -> Image.Image:
    """Red grows with y, green with x; the centre of pixel (y, x) lies at (y + 0.5, x + 0.5)."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.round((np.arange(height)[:, None] + 0.5) * 250 / height)
    pixels[..., 1] = np.round((np.arange(width) + 0.5) * 250 / width)
    return Image.fromarray(pixels)


def cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -1/2, "Cubic convolution interpolation for digital image processing", 1981."""
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights: NDArray[np.float64] = np.select([distance < 1, distance < 2], [near, far])
    return weights


def resampling(size: int, start: float, length: float, side: int) -> NDArray[np.float64]:
    """(side, size) weights of source pixels in view pixels, widened to the view's pixels where it shrinks."""
    pixel = length / side
    centre = start + (np.arange(side)[:, None] + 0.5) * pixel
    weights = cubic(np.abs(np.arange(size) + 0.5 - centre) / max(1.0, pixel))
    shares: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return shares


@pytest.mark.parametrize(
    ("box", "side"),
    [
        ([0.0, 0.0, 30.0, 40.0], 16),
        ([3.25, 5.5, 20.4, 13.7], 8),
        ([10.1, 30.3, 4.2, 5.1], 24),
        ([0.0, 36.9, 30.0, 3.1], 5),
    ],
)
def test_crop_equals_resampling_from_the_definition(box: list[float], side: int) -> None:
    """Boxes with fractions, shrunk and enlarged, at borders and inside."""
    image = noise(30, 40)
    rows, cols = resampling(30, box[0], box[2], side), resampling(40, box[1], box[3], side)
    # Pillow goes across first and rounds to bytes before it goes down.
    across = np.einsum("yxc,sx->ysc", np.asarray(image, dtype=float), cols).clip(0, 255).round()
    expected = np.einsum("ry,ysc->rsc", rows, across).clip(0, 255)
    assert np.abs(crop(image, box, side, flip=False) - expected).max() <= 1.5


def test_bilinear_crops_are_means_weighted_by_a_triangle() -> None:
    image = noise(8, 8)
    shown = crop(image, [2.0, 2.0, 4.0, 4.0], 2, flip=False, resample=Image.Resampling.BILINEAR)
    # Halving takes four pixels about each new centre, also where they lie outside the box, with weights 1, 3, 3, 1.
    weights = np.array([[1, 3, 3, 1, 0, 0], [0, 0, 1, 3, 3, 1]]) / 8
    across = np.einsum("yxc,sx->ysc", np.asarray(image, dtype=float)[1:7, 1:7], weights).round()
    assert np.abs(shown - np.einsum("ry,ysc->rsc", weights, across)).max() <= 1.5


@pytest.mark.parametrize(("height", "width"), [(30, 40), (40, 30), (224, 224), (7, 200), (1, 1)])
def test_the_whole_image_is_resized(height: int, width: int) -> None:
    image = noise(height, width)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(crop(image, [0.0, 0.0, float(height), float(width)], 16, flip=False), expected)


def test_a_box_of_whole_pixels_at_its_own_size_is_cut_out() -> None:
    image = noise(30, 40)
    expected = np.asarray(image)[4:20, 7:23]
    assert np.array_equal(crop(image, [4.0, 7.0, 16.0, 16.0], 16, flip=False), expected)
    assert np.array_equal(crop(image, [4.0, 7.0, 16.0, 16.0], 16, flip=True), expected[:, ::-1])


def test_flipping_mirrors_and_twice_is_nothing() -> None:
    image, box = noise(30, 40), [3.25, 5.5, 20.4, 13.7]
    view = crop(image, box, 16, flip=False)
    assert np.array_equal(crop(image, box, 16, flip=True), view[:, ::-1])
    mirrored_box = [3.25, 40 - 5.5 - 13.7, 20.4, 13.7]
    mirrored = crop(ImageOps.mirror(image), mirrored_box, 16, flip=True).astype(int)
    assert np.abs(mirrored - view).max() <= 1


@pytest.mark.parametrize("width", [3, 4097, 60_000])
def test_a_box_may_pass_the_border_by_a_rounding_error(width: int) -> None:
    length = 0.9 * width
    left = np.nextafter(width - length, width)
    while left + length <= width:
        left = np.nextafter(left, width)
    view = crop(noise(2, width), [0.0, float(left), 2.0, length], 4, flip=False)
    assert np.array_equal(view, crop(noise(2, width), [0.0, width - length, 2.0, length], 4, flip=False))


@pytest.mark.parametrize(("height", "width"), [(250, 250), (150, 400), (400, 130)])
def test_patches_see_the_place_where_geometry_puts_them(height: int, width: int) -> None:
    """Boxes, flips and pixels together: the patch centred at (y, x) of a gradient has the colour of (y, x)."""
    config = ViewsConfig(global_size=112, local_size=48, num_local=4)
    groups = multicrop(config, 5, [gradient(height, width)] * 6, keys(*range(6)))
    num_checked, flips = 0, set[bool]()
    for group in groups:
        num = group.side_px // 8
        # The mean of a patch is the value at its centre, as the gradient is linear.
        means = group.pixels.double().unflatten(-1, (num, 8)).unflatten(-3, (num, 8)).mean((-1, -3))  # (B, V, 3, H, W)
        colours = means.flatten(-2).transpose(-1, -2)  # (B, V, N, 3)
        places = patch_centres(group.boxes, (num, num))  # (B, V, N, 2)
        expected = places * 250 / torch.tensor([height, width])
        edges = torch.tensor([height, width])
        # A view's pixel reaches two of its widths beyond its place; at a border the image ends before.
        reach = 2 * group.boxes.corners[..., None, 2:] / num
        inner = ((places > reach) & (places < edges - reach)).all(-1)
        assert (colours[..., :2] - expected).abs()[inner].max() < 1
        assert (colours[..., :2] - expected).abs().max() < 6
        num_checked += int(inner.sum())
        flips |= set(group.boxes.flipped.flatten().tolist())
    assert num_checked > 500
    assert flips == {True, False}


def test_shapes_and_types() -> None:
    config = ViewsConfig(global_size=32, local_size=16, num_global=3, num_local=5)
    large, small = multicrop(config, 0, [noise(20, 30), noise(64, 8)], keys(4, 9))
    assert large.pixels.shape == (2, 3, 3, 32, 32)
    assert small.pixels.shape == (2, 5, 3, 16, 16)
    for group in (large, small):
        assert group.pixels.dtype == torch.uint8
        assert group.pixels.is_contiguous()
        assert group.boxes.corners.shape == (*group.pixels.shape[:2], 4)
        assert group.boxes.corners.dtype == torch.float64
        assert group.boxes.flipped.dtype == torch.bool


def test_without_local_views_there_is_one_group() -> None:
    (group,) = multicrop(ViewsConfig(global_size=32, num_local=0), 0, [noise(20, 30)], keys(0))
    assert group.num_views == 2
    (group, _) = multicrop(ViewsConfig(global_size=32, local_size=16), 0, [noise(20, 30)], keys(0))
    assert group.num_views == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_images_of_hardly_any_pixels(size: tuple[int, int]) -> None:
    image = Image.new("RGB", (size[1], size[0]), (10, 200, 30))
    for group in multicrop(ViewsConfig(global_size=32, local_size=16), 0, [image] * 8, keys(*range(8))):
        assert (group.pixels == torch.tensor([10, 200, 30])[:, None, None]).all()
        start, length = group.boxes.corners[..., :2], group.boxes.corners[..., 2:]
        assert (start >= 0).all()
        assert (length > 0).all()
        assert (start + length <= torch.tensor(size) + 1e-9).all()


SMALL = ViewsConfig(global_size=16, local_size=8, num_local=3)


def row(groups: list[ViewGroup], number: int) -> list[torch.Tensor]:
    return [part[number] for group in groups for part in (group.pixels, group.boxes.corners, group.boxes.flipped)]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    """Neither on the other images, nor on its place among them, nor on how many there are."""
    images = {index: noise(20 + index, 50 - index, seed=index) for index in range(6)}
    batch = multicrop(SMALL, 7, [images[index] for index in range(6)], keys(*range(6)))
    mixed = multicrop(SMALL, 7, [images[index] for index in (4, 0, 5)], keys(4, 0, 5))
    for place, index in enumerate((4, 0, 5)):
        assert equal(row(mixed, place), row(batch, index))
    assert equal(row(multicrop(SMALL, 7, [images[2]], keys(2)), 0), row(batch, 2))


def test_seed_epoch_index_and_view_each_change_the_view() -> None:
    image = noise(40, 40)
    views = [
        corners
        for seed, epoch, index in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
        for group in multicrop(SMALL, seed, [image], keys(index, epoch=epoch))
        for corners in group.boxes.corners[0].tolist()
    ]
    assert len(views) == 4 * 5
    assert len({tuple(corners) for corners in views}) == len(views)


def test_local_views_are_not_the_global_ones_again() -> None:
    """Drawn by one law in one image, no two of them are alike."""
    config = ViewsConfig(global_size=16, local_size=16, num_local=4, global_scale=(0.2, 0.9), local_scale=(0.2, 0.9))
    groups = multicrop(config, 0, [noise(40, 40)], keys(0))
    corners = torch.cat([group.boxes.corners for group in groups], dim=1)
    assert len(torch.unique(corners[0], dim=0)) == 6


def test_the_first_views_do_not_depend_on_how_many_follow() -> None:
    image = noise(40, 40)
    few = multicrop(ViewsConfig(global_size=16, local_size=8, num_local=1), 0, [image], keys(0))
    many = multicrop(ViewsConfig(global_size=16, local_size=8, num_local=6), 0, [image], keys(0))
    assert torch.equal(few[0].pixels, many[0].pixels)
    assert torch.equal(few[1].pixels, many[1].pixels[:, :1])


def test_shared_geometry_is_one_for_the_batch() -> None:
    shared = SMALL.model_copy(update={"shared_geometry": True})
    images = [noise(40, 60, seed=seed) for seed in range(5)]
    alone = multicrop(SMALL, 0, images[:1], keys(11))
    for group, first in zip(multicrop(shared, 0, images, keys(11, 12, 13, 14, 15)), alone, strict=True):
        assert (group.boxes.corners == first.boxes.corners).all()  # the first sample's, for all
        assert (group.boxes.flipped == first.boxes.flipped).all()
        assert len(set(map(tuple, group.boxes.corners[0].tolist()))) == group.num_views
        assert not torch.equal(group.pixels[0], group.pixels[1])
    for group in multicrop(SMALL, 0, images, keys(11, 12, 13, 14, 15)):
        assert len(torch.unique(group.boxes.corners[:, 0], dim=0)) == 5


def test_areas_ratios_and_flips_follow_the_settings() -> None:
    """Of 800 views each: areas are uniform in the scale, so their mean is its middle within four standard errors."""
    config = ViewsConfig(global_size=1, local_size=1, num_local=2, flip_probability=0.25)
    count, side = 400, 10**9  # so large that whole pixels make no difference
    plan = MultiCrop(config, 0).plan(torch.tensor([(side, side)] * count), keys(*range(count)))
    for boxes, scale in zip(plan.boxes, (config.global_scale, config.local_scale), strict=True):
        height, width = boxes.corners[..., 2:].flatten(0, 1).T
        area = height * width / side**2
        assert area.min() >= scale[0] - 1e-8
        assert area.max() <= scale[1] + 1e-8
        # Up to 3/4 of a square, boxes of every ratio fit; larger ones are drawn again where they do not.
        fitting = min(scale[1], 0.75)
        chosen = area[area < fitting]
        spread = (fitting - scale[0]) / 12**0.5
        assert abs(float(chosen.mean()) - (scale[0] + fitting) / 2) < 4 * spread / len(chosen) ** 0.5
        ratio = width / height
        assert ratio.min() >= 3 / 4 - 1e-8
        assert ratio.max() <= 4 / 3 + 1e-8
        assert abs(float(ratio.log().mean())) < 0.04  # as often upright as lying
        assert abs(float(boxes.flipped.double().mean()) - 0.25) < 4 * (0.25 * 0.75 / (2 * count)) ** 0.5


@pytest.mark.parametrize(("probability", "expected"), [(0.0, {False}), (1.0, {True})])
def test_flips_that_are_certain(probability: float, expected: set[bool]) -> None:
    config = SMALL.model_copy(update={"flip_probability": probability})
    for group in multicrop(config, 0, [noise(9, 9)] * 30, keys(*range(30))):
        assert set(group.boxes.flipped.flatten().tolist()) == expected
