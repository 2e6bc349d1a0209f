"""Colour of RGB images in [0, 1], each image of a batch with parameters of its own.

The results are those of torchvision's float operations. Every number is computed by the same elementwise operations
whatever else is in the batch, so no image depends on its neighbours.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# ITU-R BT.601, as in PIL. They sum to exactly 1, so grey stays grey; torchvision rounds the first to 0.2989.
_LUMA = (0.299, 0.587, 0.114)
# Chroma below this is rounding noise of 32-bit pixels: such a pixel is grey.
_LEAST_CHROMA = 1e-12


def luma(pixels: Tensor) -> Tensor:
    """Weigh the channels (M, 3, h, w) as the eye does, to (M, 1, h, w)."""
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def to_greyscale(pixels: Tensor) -> Tensor:
    """Replace the colours (M, 3, h, w) by their luma, in three equal channels."""
    return luma(pixels).expand_as(pixels)


def adjust_brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Multiply the pixels (M, 3, h, w) of each image by its factor (M,), clamped to [0, 1]; 1 changes nothing."""
    return (pixels * _per_image(factor)).clamp_(0, 1)


def adjust_contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend each image (M, 3, h, w) with its mean luma by its factor (M,), clamped to [0, 1]; 1 changes nothing."""
    # Channel means first: a mean per image would be summed in another order, on several threads, if M is 1.
    mean = luma(pixels.flatten(2).mean(-1)[..., None, None])  # (M, 1, 1, 1)
    return _blend(mean, pixels, factor)


def adjust_saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend each image (M, 3, h, w) with its luma by its factor (M,), clamped to [0, 1]; 1 changes nothing."""
    return _blend(luma(pixels), pixels, factor)


def adjust_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of each image in HSV space, keeping value and chroma.

    Around the hexagon of hues a channel rises, stays, falls and stays, so each is a clamped distance from the turned
    hue (A. R. Smith, "Color gamut transform pairs", SIGGRAPH 1978). The hue itself comes without cases as well: let
    R, G, B be the channels stretched to [0, 1]. Then 2 + R - G - B is its distance from cyan in sixths of a turn, on
    the side of red that the sign of G - B tells. Selecting among cases takes most of the time on CPUs.

    Args:
        pixels: (M, 3, h, w) in [0, 1].
        turn: (M,) parts of a full turn; whole numbers change nothing.

    Returns:
        (M, 3, h, w) in [0, 1].
    """
    red, green, blue = pixels.unbind(1)  # (M, h, w)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(low)
    from_cyan = (red - green).add_(low - blue).div_(chroma.clamp(min=_LEAST_CHROMA)).add_(2)
    hue = torch.copysign(from_cyan, green - blue).neg_().add_(6 * turn[:, None, None] + 3)
    hue.sub_((hue / 6).floor_().mul_(6))  # [0, 6)
    turned = torch.empty_like(pixels)
    torch.addcmul(low, chroma, (hue - 3).abs_().sub_(1).clamp_(0, 1), out=turned[:, 0])
    torch.addcmul(low, chroma, (hue - 2).abs_().neg_().add_(2).clamp_(0, 1), out=turned[:, 1])
    torch.addcmul(low, chroma, (hue - 4).abs_().neg_().add_(2).clamp_(0, 1), out=turned[:, 2])
    return turned


def solarise(pixels: Tensor, threshold: float) -> Tensor:
    """Invert the pixels (M, 3, h, w) that are at or above the threshold."""
    return torch.where(pixels >= threshold, 1 - pixels, pixels)


#: In the order in which `jitter` numbers them.
ADJUSTMENTS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
)


def jitter(pixels: Tensor, amounts: Tensor, order: Tensor) -> Tensor:
    """Adjust brightness, contrast, saturation and hue of each image, in an order of its own.

    Args:
        pixels: (M, 3, h, w) in [0, 1].
        amounts: (M, 4) factors of brightness, contrast and saturation, and the turn of the hue.
        order: (M, 4) int64, a permutation of 0 to 3 for each image: which adjustment is made first, second, ...

    Returns:
        (M, 3, h, w) in [0, 1], clamped after every adjustment.
    """
    jittered = pixels.clone()
    rows = order.argsort(dim=0)  # (M, 4): in each column first the images adjusted by number 0, then 1, ...
    # One look at the numbers for all steps, because each makes a GPU wait.
    splits = (order[..., None] == torch.arange(len(ADJUSTMENTS), device=order.device)).sum(0).cumsum(-1).tolist()
    for step, (*ends, _) in enumerate(splits):
        for number, chosen in enumerate(rows[:, step].tensor_split(ends)):
            adjusted = ADJUSTMENTS[number](jittered.index_select(0, chosen), amounts[chosen, number])
            jittered.index_copy_(0, chosen, adjusted)
    return jittered


def _blend(base: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """Go from the base through the pixels (M, 3, h, w): 0 stays at the base, 1 arrives at the pixels."""
    return torch.lerp(base.expand_as(pixels), pixels, _per_image(factor)).clamp_(0, 1)


def _per_image(numbers: Tensor) -> Tensor:
    return numbers[:, None, None, None]
