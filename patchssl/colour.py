"""Colour of RGB images in [0, 1], each image of a batch with parameters of its own, in place.

The results are those of torchvision's float operations, clamped after every adjustment as theirs. Every number is
computed by the same operations whatever else is in the batch, so no image depends on its neighbours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: In the order in which `plan_jitter` numbers them.
ADJUSTMENTS = ("brightness", "contrast", "saturation", "hue")
_CONTRAST, _SATURATION, _HUE = 1, 2, 3

# ITU-R BT.601, as in PIL. They sum to exactly 1, so grey stays grey; torchvision rounds the first to 0.2989.
_LUMA = (0.299, 0.587, 0.114)
# Chroma below this is rounding noise of 32-bit pixels: such a pixel is grey.
_LEAST_CHROMA = 1e-12


@dataclass(frozen=True, slots=True)
class JitterPlan:
    """What is done to the colours of M images; images that turn their hue later come first.

    Brightness, contrast and saturation are all blends: a factor times the pixel, plus parts of its luma and of the mean
    luma. So one pass serves images that make different adjustments, and no image has to be moved to its like.

    Attributes:
        blends: (M, 3, 3): for the first, second and third blend the factor, the part of luma and that of mean luma.
        turn: (M,) of the hue, in parts of a full turn.
        num_before: how many images, from the first, make the first, second and third blend before they turn their hue.
    """

    blends: Tensor
    turn: Tensor
    num_before: tuple[int, ...]


def plan_jitter(amounts: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Say adjustments of brightness, contrast, saturation and hue, in an order of each image, as blends.

    Args:
        amounts: (M, 4) factors of brightness, contrast and saturation, and the turn of the hue.
        order: (M, 4) int64, a permutation of 0 to 3 for each image: which adjustment is made first, second, ...

    Returns:
        Blends (M, 3, 3) and turn (M,) of a JitterPlan, and (M,) int64 how many blends of an image precede its hue.
    """
    is_hue = order == _HUE
    which = order[~is_hue].view(-1, 3)
    factor = amounts.gather(1, which)
    rest = 1 - factor
    blends = torch.stack((factor, rest * (which == _SATURATION), rest * (which == _CONTRAST)), dim=-1)
    return blends, amounts[:, _HUE], is_hue.int().argmax(1)


def jitter_(pixels: Tensor, plan: JitterPlan) -> Tensor:
    """Adjust brightness, contrast, saturation and hue of images (M, 3, h, w), clamped to [0, 1] after every one."""
    steps = plan.blends.to(pixels.dtype)[..., None, None].unbind(1)  # 3 x (M, 3, 1, 1)
    for step, num in zip(steps, plan.num_before, strict=True):
        blend_(pixels[:num], step[:num])
    turn_hue_(pixels, plan.turn)
    for step, num in zip(steps, plan.num_before, strict=True):
        blend_(pixels[num:], step[num:])
    return pixels


def blend_(pixels: Tensor, weights: Tensor) -> Tensor:
    """Blend images (M, 3, h, w) with luma and mean luma by weights (M, 3, 1, 1), clamped to [0, 1]; see JitterPlan."""
    if not len(pixels):
        return pixels
    factor, of_luma, of_mean = weights.split(1, dim=1)  # (M, 1, 1, 1)
    # Channel means first: a mean per image would be summed in another order, on several threads, if M is 1.
    mean = luma(pixels.flatten(2).mean(-1)[..., None, None])  # (M, 1, 1, 1)
    base = luma(pixels).mul_(of_luma).add_(mean.mul_(of_mean))
    return torch.addcmul(base, pixels, factor, out=pixels).clamp_(0, 1)


def turn_hue_(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of each image in HSV space, keeping value and chroma.

    Around the hexagon of hues a channel rises, stays, falls and stays, so each is a clamped distance from the turned
    hue (A. R. Smith, "Color gamut transform pairs", SIGGRAPH 1978). The hue itself comes without cases as well: let
    R, G, B be the channels stretched to [0, 1]. Then 2 + R - G - B is its distance from cyan in sixths of a turn, on
    the side of red that the sign of G - B tells. Selecting among cases takes most of the time on CPUs.

    Args:
        pixels: (M, 3, h, w) in [0, 1].
        turn: (M,) parts of a full turn, from -1 to 1; whole numbers change nothing.

    Returns:
        The pixels.
    """
    red, green, blue = pixels.unbind(1)  # (M, h, w)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    chroma = torch.maximum(red, green)
    torch.maximum(chroma, blue, out=chroma).sub_(low)
    hue = (red + low).sub_(green).sub_(blue)
    third = hue.new_full((), 1 / 3)
    torch.addcdiv(third, hue, chroma.clamp(min=_LEAST_CHROMA), value=1 / 6, out=hue)
    hue.copysign_(green - blue)  # from cyan, in turns
    torch.sub(turn.to(hue.dtype)[:, None, None] + 1.5, hue, out=hue)  # above 0
    hue.frac_().mul_(6)
    torch.addcmul(low, chroma, (hue - 3).abs_().sub_(1).clamp_(0, 1), out=red)
    torch.addcmul(low, chroma, torch.rsub((hue - 2).abs_(), 2).clamp_(0, 1), out=green)
    torch.addcmul(low, chroma, torch.rsub(hue.sub_(4).abs_(), 2).clamp_(0, 1), out=blue)
    return pixels


def luma(pixels: Tensor) -> Tensor:
    """Weigh the channels (M, 3, h, w) as the eye does, to (M, 1, h, w)."""
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def to_greyscale(pixels: Tensor) -> Tensor:
    """Replace the colours (M, 3, h, w) by their luma, in three equal channels."""
    return luma(pixels).expand_as(pixels)


def solarise(pixels: Tensor, threshold: float) -> Tensor:
    """Invert the pixels (M, 3, h, w) that are at or above the threshold."""
    return torch.where(pixels >= threshold, 1 - pixels, pixels)
