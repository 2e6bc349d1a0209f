"""Whole images handed on by loader processes, and their views cut out on the training device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchssl.resampling import resample
from patchssl.structs import Boxes, CropPlan, SampleKeys, ViewGroup
from patchssl.views import MultiCrop

#: What images of a batch take that are laid out at a time, unless a single one takes more.
LAID_OUT_BYTES = 64 << 20
_MOST_TOGETHER = 32


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """B images of any sizes, one behind the other.

    Attributes:
        pixels: (num_bytes,) uint8, each image row by row, (h, w, 3).
        sizes: h and w of each.
        plan: the views to cut out of them.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    plan: CropPlan

    def pin_memory(self) -> "DecodedImages":
        """The same in page-locked memory, as a data loader asks for before a copy to a GPU."""
        return replace(self, pixels=self.pixels.pin_memory())

    def to(self, device: torch.device) -> "DecodedImages":
        """The same with pixels on a device."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=True))


class ImagesByWorkers:
    """The division of labour in which loader processes only decode."""

    def __init__(self, crop: MultiCrop) -> None:
        """Keep what draws boxes."""
        self._crop = crop

    def plan(self, sizes: Tensor, keys: SampleKeys, reducible: Tensor) -> CropPlan:
        """As MultiCrop does."""
        return self._crop.plan(sizes, keys, reducible)

    def make(self, images: list[NDArray[np.uint8]], plan: CropPlan) -> DecodedImages:
        """The images (h, w, 3), copied once."""
        return pack(images, plan)


def pack(images: list[NDArray[np.uint8]], plan: CropPlan) -> DecodedImages:
    """Lay images (h, w, 3) one behind the other."""
    pixels = torch.empty(sum(image.size for image in images), dtype=torch.uint8)
    whole, start = pixels.numpy(), 0
    for image in images:
        whole[start : start + image.size].reshape(image.shape)[:] = image
        start += image.size
    return DecodedImages(pixels, tuple((image.shape[0], image.shape[1]) for image in images), plan)


def cut_decoded(decoded: DecodedImages) -> list[ViewGroup]:
    """Cut the views of B images out, where their pixels are.

    Returns:
        For each group of views pixels (B, V, 3, side, side) uint8 and boxes.
    """
    plan = decoded.plan
    boxes = [reduced(group, plan.reductions) for group in plan.boxes]
    views: list[list[Tensor]] = [[] for _ in plan.sides]
    for rows, images in _laid_out(decoded):
        for made, group, side in zip(views, boxes, plan.sides, strict=True):
            made.append(resample(images, group[rows], side))
    return [ViewGroup(torch.cat(made), group) for made, group in zip(views, plan.boxes, strict=True)]


def _laid_out(decoded: DecodedImages) -> Iterator[tuple[slice, Tensor]]:
    """Some images after the other, as (M, 3, H, W) with what is left beyond an image undefined."""
    starts = [0, *accumulate(3 * height * width for height, width in decoded.sizes)]
    for rows in together(decoded.sizes):
        sizes = decoded.sizes[rows]
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        images = decoded.pixels.new_empty((len(sizes), 3, height, width))
        for number, (h, w) in enumerate(sizes):
            start = starts[rows.start + number]
            image = decoded.pixels[start : start + 3 * h * w].view(h, w, 3)
            images[number, :, :h, :w] = image.permute(2, 0, 1)
        yield rows, images


def together(sizes: Sequence[tuple[int, int]]) -> Iterator[slice]:
    """Which images are laid out in boxes of the largest, so that these are few and take little."""
    first = height = width = 0
    for number, (h, w) in enumerate(sizes):
        height, width = max(height, h), max(width, w)
        num = number + 1 - first
        if num > 1 and (num > _MOST_TOGETHER or num * 3 * height * width > LAID_OUT_BYTES):
            yield slice(first, number)
            first, height, width = number, h, w
    if sizes:
        yield slice(first, len(sizes))


def reduced(boxes: Boxes, reductions: Tensor) -> Boxes:
    """Boxes (B, V) in pixels as they are decoded, from those in pixels as they are stored."""
    return Boxes(boxes.corners / reductions[:, None, None], boxes.flipped)
