"""Units against torchvision's operations, one unit and one operation after the other."""

from itertools import permutations

import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from patchssl.colour import plan_jitter
from patchssl.units import UnitParameters, apply_

ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
NUM, SIDE, RADIUS_PX = 48, 16, 6


def drawn() -> tuple[Tensor, Tensor, Tensor, UnitParameters]:
    """Pixels, amounts, orders, and the same as parameters; in each order one unit is jittered and one is not."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(NUM, 3, SIDE, SIDE, generator=generator)
    amounts = 0.6 + 0.8 * torch.rand(NUM, 4, generator=generator)
    amounts[:, 3] -= 1
    orders = torch.tensor(list(permutations(range(4)))).repeat(2, 1)
    blends, turn, num_before = plan_jitter(amounts, orders)
    greyed, blurred, solarised = (torch.rand(3, NUM, generator=generator) < 0.5).unbind(0)
    parameters = UnitParameters(
        blends=blends,
        turn=turn,
        num_before=num_before.where(torch.arange(NUM) < NUM // 2, -1),
        greyed=greyed,
        blurred=blurred,
        sigma=0.3 + 1.7 * torch.rand(NUM, generator=generator),
        solarised=solarised,
    )
    return pixels, amounts, orders, parameters


def slowly(row: int) -> Tensor:
    pixels, amounts, orders, parameters = drawn()
    unit = pixels[row]
    if parameters.num_before[row] >= 0:
        for number in orders[row].tolist():
            unit = ADJUST[number](unit, float(amounts[row, number]))
    if parameters.greyed[row]:
        unit = tv.rgb_to_grayscale(unit, num_output_channels=3)
    if parameters.blurred[row]:
        unit = tv.gaussian_blur(unit, [2 * RADIUS_PX + 1] * 2, [float(parameters.sigma[row])] * 2)
    return tv.solarize(unit, 0.5) if parameters.solarised[row] else unit


def applied(pixels: Tensor, parameters: UnitParameters) -> Tensor:
    order = parameters.sorting()
    changed = apply_(pixels[order], parameters[order], blur_radius_px=RADIUS_PX, solarise_threshold=0.5)
    return changed[order.argsort()]


def test_units_agree_with_torchvision() -> None:
    """Their red weighs 0.2989 and ours 0.299; pixels that rounding moves across the threshold are 1 - themselves."""
    pixels, _, _, parameters = drawn()
    changed, expected = applied(pixels, parameters), torch.stack([slowly(row) for row in range(NUM)])
    near = (expected - 0.5).abs() < 1e-3
    difference = torch.where(near, torch.zeros_like(expected), (changed - expected).abs())
    assert near.float().mean() < 0.05
    assert difference.max() < 1e-3
    assert difference.mean() < 1e-4


def test_units_are_taken_with_the_latest_hue_first_and_not_jittered_last() -> None:
    some = drawn()[3][torch.tensor([1, 0, 30, 4, 3])]
    assert some.num_before.tolist() == [2, 3, -1, 1, 2]
    assert some.sorting().tolist() == [1, 0, 4, 3, 2]


def test_no_units() -> None:
    pixels, _, _, parameters = drawn()
    assert applied(pixels[:0], parameters[:0]).shape == (0, 3, SIDE, SIDE)
