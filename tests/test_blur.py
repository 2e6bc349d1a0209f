"""Blur: against torchvision, the definition, and where there is nothing to blur."""

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from patchssl.blur import gaussian_blur

# The same arithmetic in another order, in float32.
ROUNDING = 2e-6


def images(num: int, height: int, width: int) -> Tensor:
    return torch.rand(num, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 9), (96, 20), (33, 97), (40, 224)])
def test_blur_agrees_with_torchvision(sigma: float, height: int, width: int) -> None:
    pixels = images(4, height, width)
    ours = gaussian_blur(pixels, torch.full((4,), sigma), 6)
    torch.testing.assert_close(ours, tv.gaussian_blur(pixels, [13, 13], [sigma, sigma]), rtol=0, atol=ROUNDING)


def slow_blur(row: list[float], sigma: float, radius: int) -> list[float]:
    """Blur a row by the definition, walking to and fro between its ends."""

    def mirrored(place: int) -> int:
        while not 0 <= place < len(row):
            place = -place if place < 0 else 2 * (len(row) - 1) - place
        return place

    weights = [2.718281828459045 ** (-0.5 * (tap / sigma) ** 2) for tap in range(-radius, radius + 1)]
    return [
        sum(weight * row[mirrored(place + tap - radius)] for tap, weight in enumerate(weights)) / sum(weights)
        for place in range(len(row))
    ]


@pytest.mark.parametrize("side", [2, 3, 4, 7, 8])
def test_blur_reaches_beyond_the_edge_several_times(side: int) -> None:
    pixels = images(2, side, side).double()
    sigma = torch.tensor([2.0, 0.8])
    expected = torch.stack(
        [
            torch.stack(
                [
                    torch.tensor([slow_blur(column, float(width), 6) for column in rows.T.tolist()]).double().T
                    for rows in (
                        torch.tensor([slow_blur(row, float(width), 6) for row in channel.tolist()], dtype=torch.float64)
                        for channel in image
                    )
                ]
            )
            for image, width in zip(pixels, sigma, strict=True)
        ]
    )
    torch.testing.assert_close(gaussian_blur(pixels, sigma, 6), expected, rtol=0, atol=1e-6)


def test_blur_of_one_pixel_and_of_even_grey_changes_nothing() -> None:
    sigma = torch.tensor([0.1, 1.0, 2.0])
    torch.testing.assert_close(gaussian_blur(images(3, 1, 1), sigma, 6), images(3, 1, 1))
    grey = torch.full((3, 3, 5, 8), 0.3)
    torch.testing.assert_close(gaussian_blur(grey, sigma, 6), grey)


def test_blur_is_not_rounded_by_autocast() -> None:
    pixels, sigma = images(2, 16, 16), torch.tensor([1.0, 2.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blurred = gaussian_blur(pixels, sigma, 6)
    assert torch.equal(blurred, gaussian_blur(pixels, sigma, 6))
