"""Gaussian blur of images of a batch, each with a width of its own."""

import torch
from torch import Tensor
from torch.nn import functional

# Outputs that one matrix product computes. Fewer make small products, more multiply by more zeros.
_BLOCK_PX = 16


def gaussian_blur(pixels: Tensor, sigma_px: Tensor, radius_px: int) -> Tensor:
    """Blur each image, mirroring it at its edges as often as the kernel reaches beyond them.

    Both axes are matrix products, one for each block of some 16 outputs, from those inputs that reach them. Short axes
    are one block, with the mirroring folded into its matrix. On one CPU core that is about twice as fast as adding
    shifted images, and grouped convolution is slower throughout. Where the caller allows TF32, results are good to
    1e-3.

    Args:
        pixels: (M, C, h, w).
        sigma_px: (M,) standard deviations, above 0.
        radius_px: where the kernels are cut off; three standard deviations keep 99.7 % of one.

    Returns:
        (M, C, h, w).
    """
    distance = torch.arange(-radius_px, radius_px + 1, dtype=pixels.dtype, device=pixels.device)
    kernels = torch.exp(-0.5 * (distance / sigma_px.to(pixels.dtype)[:, None]) ** 2)
    kernels /= kernels.sum(1, keepdim=True)  # (M, taps)
    # Autocast would round the pixels to bfloat16, coarser than the 8 bits they came with.
    with torch.autocast(pixels.device.type, enabled=False):
        return _along_rows(_along_columns(pixels, kernels), kernels)


def _along_columns(pixels: Tensor, kernels: Tensor) -> Tensor:
    """Weigh the pixels above and below each by the kernels (M, taps)."""
    height, radius = pixels.shape[-2], kernels.shape[1] // 2
    if _is_short(height, radius):
        weights = _mirrored(kernels, height)[:, None].expand(-1, pixels.shape[1], -1, -1)
        return weights.flatten(0, 1).bmm(pixels.flatten(0, 1)).view(pixels.shape)
    num, block = _blocks(height)
    first = torch.arange(num, device=pixels.device)[:, None] * block - radius
    rows = _reflected(first + torch.arange(block + 2 * radius, device=pixels.device), height)
    windows = pixels.index_select(-2, rows.flatten()).unflatten(-2, rows.shape)  # (M, C, num, block + 2 radius, w)
    weights = _banded(kernels, block)[:, None, None].expand(-1, *windows.shape[1:3], -1, -1)
    return torch.matmul(weights, windows).flatten(2, 3)[:, :, :height]


def _along_rows(pixels: Tensor, kernels: Tensor) -> Tensor:
    """Weigh the pixels left and right of each by the kernels (M, taps)."""
    width, radius = pixels.shape[-1], kernels.shape[1] // 2
    if _is_short(width, radius):
        return pixels.flatten(1, 2).bmm(_mirrored(kernels, width).mT).view(pixels.shape)
    num, block = _blocks(width)
    rows = pixels.flatten(1, 2)  # (M, C * h, w)
    before, after = rows[..., 1 : radius + 1].flip(-1), rows[..., -radius - 1 : -1].flip(-1)
    # What is past the mirrored end reaches only outputs that are cut off.
    padded = torch.cat((before, rows, after, rows[..., : num * block - width]), dim=-1)
    windows = padded.unfold(-1, block + 2 * radius, block).transpose(1, 2)  # (M, num, C * h, inputs)
    weights = _banded(kernels, block).mT[:, None].expand(-1, num, -1, -1)
    blurred = torch.matmul(windows, weights).transpose(1, 2)  # (M, C * h, num, block)
    return blurred.reshape(*pixels.shape[:3], num * block)[..., :width]


def _is_short(side: int, radius: int) -> bool:
    return side <= max(2 * _BLOCK_PX, radius)


def _blocks(side: int) -> tuple[int, int]:
    """How many blocks of how many outputs cover a side; the last may reach beyond it."""
    num = -(-side // _BLOCK_PX)
    return num, -(-side // num)


def _banded(kernels: Tensor, block: int) -> Tensor:
    """One kernel (M, taps) below the other, each a pixel further right: (M, block, block + taps - 1)."""
    num_inputs = block + kernels.shape[1] - 1
    # Rows one longer than wanted, read as rows of the length wanted: each row begins one place later.
    longer = functional.pad(kernels[:, None].expand(-1, block, -1), (0, block))
    return longer.flatten(1)[:, : block * num_inputs].view(-1, block, num_inputs)


def _mirrored(kernels: Tensor, side: int) -> Tensor:
    """Weights (M, outputs, inputs) of a whole side, with kernels (M, taps) that are mirrored at its ends."""
    radius = kernels.shape[1] // 2
    places = torch.arange(side, device=kernels.device)
    taps = torch.arange(-radius, radius + 1, device=kernels.device)
    inputs = _reflected(taps[:, None] + places, side)  # (taps, outputs)
    read = (inputs[..., None] == places).to(kernels.dtype)  # (taps, outputs, inputs)
    return (kernels @ read.flatten(1)).view(-1, side, side)


def _reflected(places: Tensor, side: int) -> Tensor:
    """Which pixel of a side shows at places beyond its ends."""
    period = max(2 * (side - 1), 1)  # a mirrored row of pixels repeats; a single pixel mirrors itself
    places = places % period
    return torch.minimum(places, period - places) if side > 1 else torch.zeros_like(places)
