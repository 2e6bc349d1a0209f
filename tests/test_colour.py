"""Colour operations: against torchvision, by hand, and what they leave as it was."""

from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from patchssl.colour import (
    ADJUSTMENTS,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    jitter,
    luma,
    solarise,
    to_greyscale,
)

# torchvision weighs red by 0.2989 where we take 0.299; factors here blend up to 1 part of luma.
LUMA_TOLERANCE = 1.1e-4
# The same arithmetic in another order, in float32.
ROUNDING = 2e-6


def images(num: int, side: int = 16, seed: int = 0) -> Tensor:
    """Noise in the first half; in the second few levels, so that channels tie and grey, black and white occur."""
    pixels = torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(seed))
    pixels[num // 2 :] = (pixels[num // 2 :] * 3).round() / 3
    return pixels


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        (adjust_brightness, tv.adjust_brightness, 0),
        (adjust_contrast, tv.adjust_contrast, LUMA_TOLERANCE),
        (adjust_saturation, tv.adjust_saturation, LUMA_TOLERANCE),
    ],
)
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4, 2.0])
def test_blends_agree_with_torchvision(
    ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, float], Tensor], tolerance: float, factor: float
) -> None:
    pixels = images(6)
    torch.testing.assert_close(
        ours(pixels, torch.full((6,), factor)), theirs(pixels, factor), rtol=0, atol=tolerance + ROUNDING
    )


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.03, 1 / 3, 0.5])
def test_hue_agrees_with_torchvision(turn: float) -> None:
    pixels = images(6)
    torch.testing.assert_close(
        adjust_hue(pixels, torch.full((6,), turn)), tv.adjust_hue(pixels, turn), rtol=0, atol=ROUNDING
    )


def test_greyscale_and_solarise_agree_with_torchvision() -> None:
    pixels = images(6)
    expected = tv.rgb_to_grayscale(pixels, num_output_channels=3)
    torch.testing.assert_close(to_greyscale(pixels), expected, rtol=0, atol=LUMA_TOLERANCE)
    assert torch.equal(solarise(pixels, 128 / 255), tv.solarize(pixels, 128 / 255))


def test_colours_worked_by_hand() -> None:
    pixels = torch.tensor([0.8, 0.4, 0.2])[None, :, None, None]  # luma 0.4968
    one = torch.ones(1)

    def result(adjust: Callable[[Tensor, Tensor], Tensor], amount: float) -> list[float]:
        return [round(value, 5) for value in adjust(pixels, one * amount).flatten().tolist()]

    assert result(adjust_brightness, 1.5) == [1.0, 0.6, 0.3]
    assert result(adjust_saturation, 0.5) == [0.6484, 0.4484, 0.3484]
    assert result(adjust_contrast, 0.5) == [0.6484, 0.4484, 0.3484]  # one pixel is its own mean
    assert result(adjust_hue, 1 / 3) == [0.2, 0.8, 0.4]
    assert result(adjust_hue, -1 / 3) == [0.4, 0.2, 0.8]
    assert result(adjust_hue, 0.5) == [0.2, 0.6, 0.8]
    assert solarise(pixels, 0.4).flatten().tolist() == pytest.approx([0.2, 0.6, 0.2])


def test_each_image_gets_its_own_amount() -> None:
    pixels, factors = images(6), torch.tensor([0.5, 1.0, 1.5, 0.3, 0.8, 1.2])
    for adjust in ADJUSTMENTS:
        together = adjust(pixels, factors)
        for row in range(6):
            assert torch.equal(together[row : row + 1], adjust(pixels[row : row + 1], factors[row : row + 1]))


def test_amounts_that_change_nothing() -> None:
    pixels, one = images(6), torch.ones(6)
    for adjust, amount in zip(ADJUSTMENTS, (one, one, one, 0 * one), strict=True):
        torch.testing.assert_close(adjust(pixels, amount), pixels, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(adjust_hue(pixels, one), pixels, rtol=0, atol=ROUNDING)


def test_grey_stays_grey() -> None:
    grey = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(4, 3, 8, 8)
    amounts = torch.tensor([0.0, 0.4, 1.3, 0.5])
    torch.testing.assert_close(adjust_saturation(grey, amounts), grey, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(adjust_hue(grey, amounts), grey, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(to_greyscale(grey), grey, rtol=0, atol=ROUNDING)


def test_results_stay_between_0_and_1_and_the_input_stays() -> None:
    pixels = images(6)
    before = pixels.clone()
    for adjust in ADJUSTMENTS:
        for amount in (0.0, 0.3, 3.0):
            changed = adjust(pixels, torch.full((6,), amount))
            assert 0 <= changed.min() <= changed.max() <= 1
    assert torch.equal(pixels, before)


def test_jitter_adjusts_in_the_order_of_each_image() -> None:
    pixels = images(24)
    amounts = torch.rand(24, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    amounts[:, 3] -= 1
    order = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(row)) for row in range(24)])
    jittered = jitter(pixels, amounts, order)
    for row in range(24):
        expected = pixels[row : row + 1]
        for number in order[row].tolist():
            expected = ADJUSTMENTS[number](expected, amounts[row : row + 1, number])
        assert torch.equal(jittered[row : row + 1], expected)


def test_luma_weighs_by_bt_601() -> None:
    assert luma(torch.eye(3)[:, :, None, None]).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
