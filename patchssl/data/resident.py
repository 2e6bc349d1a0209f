"""All images of a source decoded into one tensor."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchssl.data.decode import UnreadableImage, open_image
from patchssl.data.images import StoredSource
from patchssl.data.loader import iterate
from patchssl.errors import DataError

#: Images with longer sides are not taken for small ones.
MOST_SIDE_PX = 96
#: Nor are sources that would take more than this.
MOST_BYTES = 1 << 30
_NUM_PROBED = 32
_CHUNK = 512


class TooLargeError(DataError):
    """A source that would take more memory than it may."""


@dataclass(frozen=True, slots=True)
class Resident:
    """The M images of a source; one that cannot be read is the next that can.

    Attributes:
        pixels: (M, 3, H, W) uint8; an image smaller than the largest lies at the top left, before zeros.
        sizes: (M, 2) int64 height and width of each, on the CPU.
        bad: what could not be read.
    """

    pixels: Tensor
    sizes: Tensor
    bad: tuple[UnreadableImage, ...]


def is_small(source: StoredSource) -> bool:
    """Whether a few images of a source say that all of it may be held in memory."""
    num = len(source)
    sides = [
        side
        for index in range(0, num, -(-num // _NUM_PROBED))
        if (size := _size_of(source, index)) is not None
        for side in size
    ]
    return bool(sides) and max(sides) <= MOST_SIDE_PX and num * 3 * max(sides) ** 2 <= MOST_BYTES


def _size_of(source: StoredSource, index: int) -> tuple[int, int] | None:
    try:
        stored = source.fetch(index)
        if isinstance(stored, bytes):
            return open_image(stored, source.where(index), apply_exif=source.apply_exif).size_px
    except UnreadableImage:
        return None
    return stored.shape[0], stored.shape[1]


def load_resident(source: StoredSource, *, workers: int, most_bytes: int = MOST_BYTES) -> Resident:
    """Decode all images of a source.

    Args:
        source: M images of any sizes; all take as much memory as one of the greatest height and width.
        workers: processes; 0 decodes in this one.
        most_bytes: that pixels may take.

    Raises:
        TooLargeError: they would take more.
        DataError: none can be read.
    """
    chunks: list[list[NDArray[np.uint8] | None]] = []
    bad: list[UnreadableImage] = []
    height = width = 0
    with closing(iterate(_Chunks(source), first_step=0, workers=workers, pin_memory=False)) as made:
        for images, unreadable in made:
            chunks.append(images)
            bad += unreadable
            for image in images:
                if image is not None:
                    height, width = max(height, image.shape[0]), max(width, image.shape[1])
            if (needed := len(source) * 3 * height * width) > most_bytes:
                raise TooLargeError(
                    f"{source.location}: {len(source):,} images of up to {width} x {height} px would take "
                    f"{needed / (1 << 30):.2f} GiB decoded, and {most_bytes / (1 << 30):.2f} GiB are allowed; take "
                    "data.division auto"
                )
    if len(bad) == len(source):
        raise DataError(f"none of the {len(source)} images of {source.location} can be read; the first: {bad[0]}")
    return _laid_out(chunks, (len(source), height, width), bad)


def _laid_out(
    chunks: list[list[NDArray[np.uint8] | None]], shape: tuple[int, int, int], bad: list[UnreadableImage]
) -> Resident:
    """Move images into one array, and let each that is missing be the next."""
    num, height, width = shape
    pixels, sizes = np.zeros((num, height, width, 3), dtype=np.uint8), np.zeros((num, 2), dtype=np.int64)
    for index, image in _numbered(chunks):
        if image is not None:
            pixels[index, : image.shape[0], : image.shape[1]] = image
            sizes[index] = image.shape[:2]
    readable = sizes[:, 0] > 0
    if not readable.all():
        present = np.flatnonzero(readable)
        missing = np.flatnonzero(~readable)
        instead = present[np.searchsorted(present, missing) % len(present)]
        pixels[missing], sizes[missing] = pixels[instead], sizes[instead]
    return Resident(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(sizes), tuple(bad))


def _numbered(chunks: list[list[NDArray[np.uint8] | None]]) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
    return enumerate(image for chunk in chunks for image in chunk)


class _Chunks:
    """Some images after the other, decoded; None for one that cannot be."""

    def __init__(self, source: StoredSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return -(-len(self._source) // _CHUNK)

    def __getitem__(self, number: int) -> tuple[list[NDArray[np.uint8] | None], list[UnreadableImage]]:
        images: list[NDArray[np.uint8] | None] = []
        bad: list[UnreadableImage] = []
        for index in range(number * _CHUNK, min(len(self._source), (number + 1) * _CHUNK)):
            try:
                images.append(_decoded(self._source, index))
            except UnreadableImage as error:
                images.append(None)
                bad.append(error)
        return images, bad


def _decoded(source: StoredSource, index: int) -> NDArray[np.uint8]:
    stored = source.fetch(index)
    if not isinstance(stored, bytes):
        return stored
    return open_image(stored, source.where(index), apply_exif=source.apply_exif).pixels()
