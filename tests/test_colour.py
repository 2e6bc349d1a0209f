"""Colour operations: against torchvision, by hand, and what they leave as it was."""

from itertools import permutations

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from patchssl.colour import ADJUSTMENTS, JitterPlan, jitter_, luma, plan_jitter, solarise, to_greyscale, turn_hue_

# torchvision weighs red by 0.2989 where we take 0.299; factors here blend up to 1 part of luma.
LUMA_TOLERANCE = 1.1e-4
# The same arithmetic in another order, in float32.
ROUNDING = 2e-6


def images(num: int, side: int = 16, seed: int = 0) -> Tensor:
    """Noise in the first half; in the second few levels, so that channels tie and grey, black and white occur."""
    pixels = torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(seed))
    pixels[num // 2 :] = (pixels[num // 2 :] * 3).round() / 3
    return pixels


THEIRS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
NEUTRAL = (1.0, 1.0, 1.0, 0.0)


def jitter(pixels: Tensor, amounts: Tensor, order: Tensor) -> Tensor:
    """Sorted for jitter_ and back again."""
    blends, turn, num_before = plan_jitter(amounts, order)
    rows = num_before.argsort(descending=True, stable=True)
    counts = tuple(int((num_before >= least).sum()) for least in (1, 2, 3))
    jittered = torch.empty_like(pixels)
    jittered[rows] = jitter_(pixels[rows], JitterPlan(blends[rows], turn[rows], counts))
    return jittered


def adjust(pixels: Tensor, number: int, amount: Tensor) -> Tensor:
    """One adjustment, with all others neutral."""
    amounts = torch.tensor(NEUTRAL).repeat(len(pixels), 1)
    amounts[:, number] = amount
    return jitter(pixels, amounts, torch.arange(4).repeat(len(pixels), 1))


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4, 2.0])
def test_blends_agree_with_torchvision(number: int, factor: float) -> None:
    pixels = images(6)
    expected = THEIRS[number](pixels, factor)
    ours = adjust(pixels, number, torch.full((6,), factor))
    torch.testing.assert_close(ours, expected, rtol=0, atol=LUMA_TOLERANCE + ROUNDING)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.03, 1 / 3, 0.5])
def test_hue_agrees_with_torchvision(turn: float) -> None:
    pixels = images(6)
    expected = tv.adjust_hue(pixels, turn)
    torch.testing.assert_close(turn_hue_(pixels, torch.full((6,), turn)), expected, rtol=0, atol=ROUNDING)


def test_greyscale_and_solarise_agree_with_torchvision() -> None:
    pixels = images(6)
    expected = tv.rgb_to_grayscale(pixels, num_output_channels=3)
    torch.testing.assert_close(to_greyscale(pixels), expected, rtol=0, atol=LUMA_TOLERANCE)
    assert torch.equal(solarise(pixels, 128 / 255), tv.solarize(pixels, 128 / 255))


def test_colours_worked_by_hand() -> None:
    pixels = torch.tensor([0.8, 0.4, 0.2])[None, :, None, None]  # luma 0.4968

    def result(number: int, amount: float) -> list[float]:
        return [round(value, 5) for value in adjust(pixels, number, torch.tensor([amount])).flatten().tolist()]

    assert result(0, 1.5) == [1.0, 0.6, 0.3]
    assert result(2, 0.5) == [0.6484, 0.4484, 0.3484]
    assert result(1, 0.5) == [0.6484, 0.4484, 0.3484]  # one pixel is its own mean
    assert result(3, 1 / 3) == [0.2, 0.8, 0.4]
    assert result(3, -1 / 3) == [0.4, 0.2, 0.8]
    assert result(3, 0.5) == [0.2, 0.6, 0.8]
    assert solarise(pixels, 0.4).flatten().tolist() == pytest.approx([0.2, 0.6, 0.2])


def test_blends_worked_by_hand() -> None:
    """Contrast 0.5, hue, brightness 1.5, saturation 0.75: factor, part of luma, part of mean luma."""
    amounts, order = torch.tensor([[1.5, 0.5, 0.75, 0.1]]), torch.tensor([[1, 3, 0, 2]])
    blends, turn, num_before = plan_jitter(amounts, order)
    assert blends.tolist() == [[[0.5, 0, 0.5], [1.5, 0, 0], [0.75, 0.25, 0]]]
    assert turn.tolist() == pytest.approx([0.1])
    assert num_before.tolist() == [1]


def test_jitter_is_torchvisions_in_each_of_the_24_orders() -> None:
    """Clamped after every adjustment as theirs: factors up to 2 leave [0, 1] often."""
    order = torch.tensor(list(permutations(range(4))))
    pixels = images(24)
    amounts = torch.rand(24, 4, generator=torch.Generator().manual_seed(1)) * 1.5 + 0.5
    amounts[:, 3] = amounts[:, 3] / 2 - 0.5
    jittered = jitter(pixels, amounts, order)
    for row in range(24):
        expected = pixels[row]
        for number in order[row].tolist():
            expected = THEIRS[number](expected, float(amounts[row, number]))
        # Up to eightfold by three factors of at most 2, and hue is steep where chroma is small.
        differences = (jittered[row] - expected).abs()
        assert differences.mean() < LUMA_TOLERANCE
        assert differences.max() < 20 * LUMA_TOLERANCE


def test_no_image_depends_on_another() -> None:
    order = torch.tensor(list(permutations(range(4))))
    pixels, amounts = images(24), torch.rand(24, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    together = jitter(pixels, amounts, order)
    for row in range(24):
        one = slice(row, row + 1)
        assert torch.equal(jitter(pixels[one], amounts[one], order[one]), together[one])


def test_amounts_that_change_nothing() -> None:
    pixels = images(6)
    for number, amount in enumerate(NEUTRAL):
        torch.testing.assert_close(adjust(pixels, number, torch.full((6,), amount)), pixels, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(turn_hue_(pixels.clone(), torch.ones(6)), pixels, rtol=0, atol=ROUNDING)


def test_grey_stays_grey() -> None:
    grey = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(4, 3, 8, 8)
    for number in (2, 3):
        changed = adjust(grey, number, torch.tensor([0.0, 0.4, 1.3, 0.5]))
        torch.testing.assert_close(changed, grey, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(to_greyscale(grey), grey, rtol=0, atol=ROUNDING)


def test_results_stay_between_0_and_1() -> None:
    pixels = images(6)
    for number in range(len(ADJUSTMENTS)):
        for amount in (0.0, 0.3, 3.0 if number < 3 else 1.0):
            changed = adjust(pixels, number, torch.full((6,), amount))
            assert 0 <= changed.min() <= changed.max() <= 1


def test_no_images() -> None:
    assert adjust(images(0), 0, torch.ones(0)).shape == (0, 3, 16, 16)


def test_luma_weighs_by_bt_601() -> None:
    assert luma(torch.eye(3)[:, :, None, None]).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
