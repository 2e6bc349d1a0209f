"""Boxes of images resampled to views for whole batches, by antialiased bicubic interpolation.

A view is two small matrices times the image, one for its rows and one for its columns. So each image has boxes of its
own and no image waits for another, which a device that computes many at a time needs. The filter is Pillow's and
torch's: Keys' kernel with a = -1/2 ("Cubic convolution interpolation for digital image processing", IEEE Transactions
on Acoustics, Speech and Signal Processing, 1981), stretched to the distance of the view's pixels where these are
farther apart than the image's. As in these two, across comes first, and what is between is rounded to bytes.
"""

import torch
from torch import Tensor

from patchssl.structs import Boxes

_REACH = 2
# Of matrices and of images between the two products, at a time; on a CPU they should stay in its caches.
_WORKSPACE_BYTES, _CPU_WORKSPACE_BYTES = 256 << 20, 4 << 20
_FLOAT32 = 4


def resample(images: Tensor, boxes: Boxes, side: int) -> Tensor:
    """Cut views out of a batch of images.

    Args:
        images: (B, 3, H, W) uint8; where images differ in size, what boxes do not reach is not looked at.
        boxes: in pixels of these images, leading dimensions (B, V), on the CPU; they touch no pixel beyond H and W.
        side: of the views, px.

    Returns:
        (B, V, 3, side, side) uint8 on the device of the images.
    """
    num_images, num_views = boxes.flipped.shape
    views = torch.empty((num_images, num_views, 3, side, side), dtype=torch.uint8, device=images.device)
    at_a_time = _images_at_a_time(images, num_views, side)
    for start in range(0, num_images, at_a_time):
        rows = slice(start, start + at_a_time)
        views[rows] = _resampled(images[rows], boxes[rows], side)
    return views


def _resampled(images: Tensor, boxes: Boxes, side: int) -> Tensor:
    height, width = images.shape[2:]
    down = axis_weights(boxes.corners[..., 0], boxes.corners[..., 2], side, height, device=images.device)
    across = axis_weights(boxes.corners[..., 1], boxes.corners[..., 3], side, width, device=images.device)
    across = torch.where(boxes.flipped[..., None, None].to(images.device), across.flip(-2), across)
    num_images, num_views = boxes.flipped.shape
    rows = images.float().flatten(1, 2)  # (B, 3 * H, W)
    half = torch.bmm(rows, across.flatten(1, 2).transpose(1, 2))  # (B, 3 * H, V * side)
    half = _to_bytes(half).view(num_images, 3, height, num_views, side).permute(0, 3, 2, 1, 4)  # (B, V, H, 3, side)
    views = torch.bmm(down.flatten(0, 1), half.reshape(num_images * num_views, height, 3 * side))
    return _to_bytes(views).view(num_images, num_views, side, 3, side).transpose(2, 3)


def _to_bytes(values: Tensor) -> Tensor:
    """Rounded to whole numbers from 0 to 255; still floats."""
    return values.round_().clamp_(0, 255)


def axis_weights(start: Tensor, length: Tensor, side: int, size: int, *, device: torch.device) -> Tensor:
    """How much each pixel of an axis counts in each pixel of views.

    Only the pixels that a box touches count.

    Args:
        start: (...) float64 where boxes begin, px; fractions meant.
        length: (...) float64 of the boxes, px, above 0.
        side: pixels of a view.
        size: pixels of the image.
        device: where to compute.

    Returns:
        (..., side, size) float32; rows sum to 1.
    """
    # Apart from their whole part, since float32 keeps a position of some thousands to 1e-4 only.
    first = start.floor()
    numbers = torch.stack((first, start - first, length / side, (start + length).ceil() - first))
    # One small transfer, for which a GPU need not be waited for.
    first, rest, step, touched = numbers.float().to(device, non_blocking=True)[..., None]  # (..., 1) each
    centres = rest + (torch.arange(side, dtype=torch.float32, device=device) + 0.5) * step  # (..., side)
    pixels = torch.arange(size, dtype=torch.float32, device=device) - first  # (..., size), counted from the box's first
    distance = (pixels + 0.5)[..., None, :] - centres[..., None]  # (..., side, size)
    weights = _cubic(distance / step.clamp(min=1)[..., None])
    weights *= ((pixels >= 0) & (pixels < touched))[..., None, :]
    return weights / weights.sum(-1, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    distance = distance.abs()
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < _REACH, far, 0.0))


def _images_at_a_time(images: Tensor, num_views: int, side: int) -> int:
    height, width = images.shape[2:]
    of_an_image = _FLOAT32 * (3 * height * width + num_views * side * (3 * (height + width) + 6 * height + 3 * side))
    return max(1, workspace_bytes(images.device.type) // of_an_image)


def workspace_bytes(device: str) -> int:
    """What resampling takes besides images and views on a device: cpu, cuda or mps."""
    return _CPU_WORKSPACE_BYTES if device == "cpu" else _WORKSPACE_BYTES
