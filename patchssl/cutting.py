"""Views cut out of decoded images one by one, as loader processes do; and images handed on whole."""

from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from patchssl.structs import Boxes, CropPlan, SampleKeys, ViewGroup
from patchssl.views import MultiCrop


class ViewsByWorkers:
    """The division of labour in which loader processes cut the views out."""

    def __init__(self, crop: MultiCrop) -> None:
        """Keep what draws boxes."""
        self._crop = crop

    def plan(self, sizes: Tensor, keys: SampleKeys, reducible: Tensor) -> CropPlan:
        """As MultiCrop does."""
        return self._crop.plan(sizes, keys, reducible)

    def make(self, images: list[NDArray[np.uint8]], plan: CropPlan) -> list[ViewGroup]:
        """The global and, unless there are none, the local views: pixels (B, V, 3, side, side) uint8."""
        return cut_views(images, plan)


def cut_views(images: list[NDArray[np.uint8]], plan: CropPlan) -> list[ViewGroup]:
    """Cut the views of B images out.

    Args:
        images: (h, w, 3) as they were decoded.
        plan: of these images.

    Returns:
        For each group of views pixels (B, V, 3, side, side) uint8 and boxes.
    """
    images = [np.require(image, requirements="W") for image in images]  # torch takes no others
    reductions = plan.reductions.tolist()
    return [
        ViewGroup(_pixels(images, boxes, side, reductions), boxes)
        for side, boxes in zip(plan.sides, plan.boxes, strict=True)
    ]


def _pixels(images: list[NDArray[np.uint8]], boxes: Boxes, side: int, reductions: list[int]) -> Tensor:
    """(B, V, 3, side, side) uint8."""
    views = torch.empty((*boxes.flipped.shape, 3, side, side), dtype=torch.uint8)
    for row, (image, reduction) in enumerate(zip(images, reductions, strict=True)):
        corners = (boxes.corners[row] / reduction).tolist()
        for number, (box, flip) in enumerate(zip(corners, boxes.flipped[row].tolist(), strict=True)):
            view = cut(image, box, side)
            views[row, number] = view.flip(-1) if flip else view
    return views


def cut(image: NDArray[np.uint8], box: list[float], side: int) -> Tensor:
    """Resample a box of an image by antialiased bicubic interpolation, from the pixels that it touches alone.

    Args:
        image: (h, w, 3) uint8, not read only.
        box: top, left, height, width in pixels of it, fractions meant.
        side: of the result, px.

    Returns:
        (3, side, side) uint8.
    """
    top, left, height, width = box
    rows, columns = slice(int(top), ceil(top + height)), slice(int(left), ceil(left + width))
    touched = image[rows, columns]
    if touched.shape[:2] == (height, width):
        pixels = torch.from_numpy(touched).permute(2, 0, 1)[None]
        # The kernel for bytes of images whose channels lie side by side is several times as fast as Pillow's.
        return functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)[0]
    edges = (left - columns.start, top - rows.start, left - columns.start + width, top - rows.start + height)
    view = Image.fromarray(touched).resize((side, side), Image.Resampling.BICUBIC, box=edges)
    return torch.from_numpy(np.array(view)).permute(2, 0, 1)
