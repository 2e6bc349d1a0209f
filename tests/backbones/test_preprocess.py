import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import center_crop, normalize, resize, to_tensor
from torchvision.transforms.transforms import InterpolationMode

from patchssl.backbones.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from patchssl.errors import ConfigError


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    "size", [(256, 256), (300, 200), (200, 301), (17, 40), (500, 333), (333, 501), (256, 400), (1, 1), (640, 21)]
)
@pytest.mark.parametrize("sides", [(224, 256), (32, 36), (32, 32), (31, 36)])
def test_equals_torchvision(size: tuple[int, int], sides: tuple[int, int]) -> None:
    preprocess = Preprocess(image_px=sides[0], resize_px=sides[1])
    image = noise(*size)
    expected = normalize(
        to_tensor(center_crop(resize(image, sides[1], InterpolationMode.BICUBIC), sides[0])),
        list(IMAGENET_MEAN),
        list(IMAGENET_STD),
    )
    torch.testing.assert_close(preprocess.normalise(preprocess.crop(image)[None])[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_every_interpolation_equals_torchvisions(interpolation: str) -> None:
    preprocess = Preprocess(image_px=32, resize_px=36, interpolation=interpolation)
    expected = center_crop(resize(noise(70, 50), 36, InterpolationMode(interpolation)), 32)
    assert np.array_equal(preprocess.crop(noise(70, 50)).permute(1, 2, 0).numpy(), np.array(expected))
    assert preprocess.resize == f"{interpolation}, shorter side"


def test_squash_takes_the_whole_image() -> None:
    preprocess = Preprocess(image_px=32, resize_px=32, fit="squash")
    expected = resize(noise(70, 50), [32, 32], InterpolationMode.BICUBIC)
    assert np.array_equal(preprocess.crop(noise(70, 50)).permute(1, 2, 0).numpy(), np.array(expected))
    assert preprocess.resize == "bicubic, both sides"


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ConfigError, match="interpolation 'random' is unknown; allowed: nearest, bilinear"):
        Preprocess(image_px=32, resize_px=36, interpolation="random")
    with pytest.raises(ConfigError, match="a crop of 37 px cannot be cut out of 36 px"):
        Preprocess(image_px=37, resize_px=36)


def test_crop_by_hand() -> None:
    # 4 x 2 stays; offsets round((4 - 1) / 2) = 2 and round((2 - 1) / 2) = 0, halves to even.
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    crop = Preprocess(image_px=1, resize_px=2).crop(Image.fromarray(pixels))
    assert crop.flatten().tolist() == pixels[0, 2].tolist()


def test_normalise_by_hand() -> None:
    preprocess = Preprocess(image_px=1, resize_px=1, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    found = preprocess.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    assert found.flatten().tolist() == [1.0, 1.0, 0.0]


def test_other_sizes_keep_the_proportion() -> None:
    base = Preprocess(image_px=224, resize_px=256)
    assert [base.at_size(side).resize_px for side in (224, 32, 448)] == [256, 36, 512]


def test_long_strips_need_no_gigabytes() -> None:
    strip = np.zeros((1, 60_000, 3), np.uint8)
    strip[:, 29_990:30_010] = 200
    crop = Preprocess(image_px=224, resize_px=256).crop(Image.fromarray(strip))
    assert crop.shape == (3, 224, 224)
    assert (crop == 200).all()


def test_crop_fractions() -> None:
    base = Preprocess(image_px=224, resize_px=256)
    assert [base.with_crop_fraction(fraction).resize_px for fraction in (0.875, 1.0, 0.9)] == [256, 224, 248]
    assert base.with_crop_fraction(1.0).at_size(32).resize_px == 32


@pytest.mark.parametrize(("size", "expected"), [((100, 50), (64, 32)), ((30, 60), (30, 60)), ((640, 431), (64, 43))])
def test_long_side_is_pillows_thumbnail_and_never_enlarges(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = noise(*size)
    found = Preprocess(image_px=64, resize_px=64, fit="long-side", interpolation="lanczos").crop(image)
    image.thumbnail((64, 64), Image.Resampling.LANCZOS)
    assert image.size == expected
    assert np.array_equal(found.permute(1, 2, 0), np.asarray(image))


def test_the_picture_itself_is_not_made_smaller() -> None:
    image = noise(100, 50)
    Preprocess(image_px=64, resize_px=64, fit="long-side").crop(image)
    assert image.size == (100, 50)


@pytest.mark.parametrize(
    ("size", "shape"), [((100, 50), (3, 64, 128)), ((50, 101), (3, 129, 64)), ((64, 64), (3, 64, 64))]
)
def test_short_side_cuts_nothing_off(size: tuple[int, int], shape: tuple[int, int, int]) -> None:
    assert Preprocess(image_px=64, resize_px=64, fit="short-side").crop(noise(*size)).shape == shape


def test_fits_and_scales_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="fit 'pad' is unknown; allowed: crop, squash, long-side, short-side"):
        Preprocess(image_px=64, resize_px=64, fit="pad")
    for scales in ((), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="scales"):
            Preprocess(image_px=64, resize_px=64, scales=scales)


def test_settings_name_what_changes_a_number() -> None:
    plain = Preprocess(image_px=64, resize_px=73)
    assert {"image_px": 64, "resize_px": 73, "resize": "bicubic, shorter side", "crop": "centre"}.items() <= (
        plain.settings().items()
    )
    assert "scales" not in plain.settings()
    several = Preprocess(image_px=64, resize_px=64, fit="long-side", scales=(1.0, 0.5))
    assert {"resize": "bicubic, longer side, never enlarged", "crop": "none", "scales": [1.0, 0.5]}.items() <= (
        several.settings().items()
    )
