"""Where views lie in their images: crop boxes, flips, patch centres.

Everything is a pure function of tensors with any leading dimensions, in float64 pixels of the source image. Boxes keep
their fractions of a pixel: whole pixels would distort the boxes of small images (a local crop of a CIFAR image is some
10 px wide), and resampling does not need them.
"""

import math

import torch
from torch import Tensor

from patchssl.errors import ConfigError
from patchssl.structs import Boxes

_NUM_ATTEMPTS = 10
#: How many uniform numbers a box takes: an area and a ratio for each attempt, then two for the position.
NUM_BOX_UNIFORMS = 2 * _NUM_ATTEMPTS + 2


def draw_boxes(
    uniforms: Tensor,
    height_px: Tensor,
    width_px: Tensor,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Draw crop boxes by the law of random resized cropping (Szegedy et al., "Going deeper with convolutions", 2014).

    A box covers a fraction of the image that is uniform in `scale`, and its width / height is log-uniform in `ratio`.
    The first of ten attempts that fits into the image is kept and placed uniformly. If none fits, the box is the
    largest central one whose ratio lies within `ratio`.

    Args:
        uniforms: (..., NUM_BOX_UNIFORMS) in [0, 1).
        height_px: (...) heights of the source images.
        width_px: (...) their widths.
        scale: least and greatest fraction of the area, 0 < least <= greatest <= 1.
        ratio: least and greatest width / height, 0 < least <= greatest.

    Returns:
        (..., 4) float64: top, left, height, width in pixels of the source image, not rounded to whole pixels.

    Raises:
        ConfigError: `scale` or `ratio` is not a range as above.
        ValueError: the last dimension of `uniforms` is not NUM_BOX_UNIFORMS.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ConfigError(f"crop scale {scale} is not a range of area fractions; give 0 < least <= greatest <= 1")
    if not 0 < ratio[0] <= ratio[1]:
        raise ConfigError(f"crop ratio {ratio} is not a range of width / height; give 0 < least <= greatest")
    if uniforms.shape[-1] != NUM_BOX_UNIFORMS:
        raise ValueError(f"uniforms end in {uniforms.shape[-1]} numbers; a box takes {NUM_BOX_UNIFORMS}")
    areas, ratios, position = uniforms.double().tensor_split((_NUM_ATTEMPTS, 2 * _NUM_ATTEMPTS), dim=-1)
    image = torch.stack((height_px, width_px), dim=-1).double()  # (..., 2)

    area_px = image.prod(-1, keepdim=True) * (scale[0] + areas * (scale[1] - scale[0]))  # (..., attempts)
    ratios = torch.exp(math.log(ratio[0]) + ratios * math.log(ratio[1] / ratio[0]))
    attempts = torch.stack(((area_px / ratios).sqrt(), (area_px * ratios).sqrt()), dim=-1)  # (..., attempts, 2)

    fits = (attempts <= image[..., None, :]).all(-1)  # (..., attempts)
    first = fits.int().argmax(-1)[..., None, None].expand(*fits.shape[:-1], 1, 2)
    size = attempts.gather(-2, first).squeeze(-2)  # (..., 2)
    drawn = torch.cat((position * (image - size), size), dim=-1)
    return torch.where(fits.any(-1, keepdim=True), drawn, _central_boxes(image, ratio))


def _central_boxes(image: Tensor, ratio: tuple[float, float]) -> Tensor:
    """Largest central boxes whose width / height lies within `ratio`, (..., 4), in images of size (..., 2)."""
    height, width = image.unbind(-1)
    size = torch.stack((height.minimum(width / ratio[0]), width.minimum(height * ratio[1])), dim=-1)
    return torch.cat(((image - size) / 2, size), dim=-1)


def draw_flips(uniforms: Tensor, probability: float = 0.5) -> Tensor:
    """Decide which views are mirrored left to right.

    Args:
        uniforms: (...) in [0, 1).
        probability: of being mirrored; 0 never, 1 always.

    Returns:
        (...) bool.

    Raises:
        ConfigError: the probability lies outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ConfigError(f"flip probability {probability} is not a probability; give 0 <= probability <= 1")
    return uniforms < probability


def patch_centres(boxes: Boxes, grid: tuple[int, int]) -> Tensor:
    """Find where the centres of a view's patches lie in the source image.

    Args:
        boxes: of the views, leading dimensions (...).
        grid: (H, W), how many patches a view has down and across.

    Returns:
        (..., H * W, 2) float64: y and x in pixels of the source image, patches row-major as the view shows them.
    """
    top, left, height, width = boxes.corners.unbind(-1)
    ys = _centres(top, height, grid[0])  # (..., H)
    xs = _centres(left, width, grid[1])  # (..., W)
    xs = torch.where(boxes.flipped[..., None], xs.flip(-1), xs)
    shape = (*ys.shape, grid[1])
    return torch.stack((ys[..., :, None].expand(shape), xs[..., None, :].expand(shape)), dim=-1).flatten(-3, -2)


def _centres(start: Tensor, length: Tensor, num: int) -> Tensor:
    """Centres (..., num) of equal parts of the stretches that begin at `start` (...)."""
    parts = torch.arange(num, dtype=start.dtype, device=start.device) + 0.5
    return start[..., None] + parts * (length[..., None] / num)
