"""Images of a source → batches of crops, in order, made ahead of time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from patchssl.data.at_work import note
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ImageSource
from patchssl.data.made_ahead import made_ahead


@dataclass(frozen=True, slots=True)
class CropBatch:
    """Crops of consecutive images.

    Attributes:
        indices: (B,) places in the source of those that can be read.
        pixels: (B, 3, h, w) uint8, or where their sizes differ (3, h, w) for each.
        unreadable: index, path and reason of each of the others.
    """

    indices: list[int]
    pixels: Tensor | list[Tensor]
    unreadable: list[tuple[int, str, str]]

    def pin_memory(self) -> "CropBatch":
        """The same in page-locked memory, as a data loader asks for before a copy to a GPU."""
        pixels = self.pixels
        pinned = pixels.pin_memory() if isinstance(pixels, Tensor) else [crop.pin_memory() for crop in pixels]
        return CropBatch(self.indices, pinned, self.unreadable)


def read_crops(
    source: ImageSource,
    crop: Callable[[Image.Image], Tensor],
    batches: Sequence[Sequence[int]],
    *,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[CropBatch]:
    """Read batches of images, in the order given.

    Args:
        source: the images.
        crop: turns an RGB image into (3, h, w) uint8.
        batches: the places of each batch's images in the source.
        num_workers: processes of one thread each that decode and crop ahead; 0 does it in this one.
        pin_memory: for copies to a GPU that overlap computing.

    Raises:
        LoaderError: a process died, or an error came that nobody foresaw.
    """
    yield from made_ahead(_Batches(source, crop), batches, workers=num_workers, pin_memory=pin_memory)


class _Batches(Dataset[CropBatch]):
    """Whole batches as items, so that a worker puts the crops together."""

    def __init__(self, source: ImageSource, crop: Callable[[Image.Image], Tensor]) -> None:
        self.source, self.crop = source, crop

    def __getitem__(self, places: Sequence[int]) -> CropBatch:
        indices: list[int] = []
        crops: list[Tensor] = []
        unreadable: list[tuple[int, str, str]] = []
        for index in places:
            note(f"read {self.source.location}: {self.source.ids[index]}")
            try:
                crops.append(self.crop(self.source.read(index)))
            except UnreadableImage as error:
                unreadable.append((index, error.path, error.reason))
                continue
            indices.append(index)
        return CropBatch(indices, _together(crops), unreadable)


def _together(crops: list[Tensor]) -> Tensor | list[Tensor]:
    if not crops:
        return torch.empty(0, dtype=torch.uint8)
    if len({crop.shape for crop in crops}) > 1:
        return crops
    pixels = crops[0].new_empty((len(crops), *crops[0].shape))
    if get_worker_info() is not None:
        # Shared before it is filled: the batch then reaches the main process without a copy.
        pixels.share_memory_()
    return torch.stack(crops, out=pixels)
