"""All images of a source decoded into one tensor."""

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchssl.data.decode import UnreadableImage, open_image
from patchssl.data.images import StoredSource
from patchssl.data.loader import iterate
from patchssl.data.probing import some_of
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
        reducible: (M,) bool, which could have been decoded smaller, on the CPU; boxes depend on it.
        bad: what could not be read.
    """

    pixels: Tensor
    sizes: Tensor
    reducible: Tensor
    bad: tuple[UnreadableImage, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """What some images of a source are like.

    Attributes:
        num_images: of the whole source.
        sizes: (P, 2) int64 height and width of each that can be read.
        reducible: (P,) bool, which can be decoded smaller.
    """

    num_images: int
    sizes: Tensor
    reducible: Tensor

    def is_small(self) -> bool:
        """Whether all of the source may be held in memory, as far as can be seen from these."""
        most = int(self.sizes.max()) if len(self.sizes) else MOST_SIDE_PX + 1
        return most <= MOST_SIDE_PX and self.num_images * 3 * most**2 <= MOST_BYTES


def probe(source: StoredSource) -> Probe:
    """Look at the headers of some images."""
    found = [seen for index in some_of(source, _NUM_PROBED) if (seen := _seen(source, index)) is not None]
    sizes, reducible = [size for size, _ in found], [is_reducible for _, is_reducible in found]
    return Probe(
        len(source), torch.tensor(sizes, dtype=torch.int64).view(-1, 2), torch.tensor(reducible, dtype=torch.bool)
    )


def _seen(source: StoredSource, index: int) -> tuple[tuple[int, int], bool] | None:
    """Height and width of an image, and whether it can be decoded smaller; None where it cannot be read."""
    try:
        stored = source.fetch(index)
        if isinstance(stored, bytes):
            opened = open_image(stored, source.where(index), apply_exif=source.apply_exif)
            return opened.size_px, opened.is_reducible
    except UnreadableImage:
        return None
    return (stored.shape[0], stored.shape[1]), False


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
    chunks: list[_Chunk] = []
    height = width = 0
    with closing(iterate(_Chunks(source), first_step=0, workers=workers, pin_memory=False)) as made:
        for chunk in made:
            chunks.append(chunk)
            for image in chunk.images:
                if image is not None:
                    height, width = max(height, image.shape[0]), max(width, image.shape[1])
            if (needed := len(source) * 3 * height * width) > most_bytes:
                raise TooLargeError(
                    f"{source.location}: {len(source):,} images of up to {width} x {height} px would take "
                    f"{needed / (1 << 30):.2f} GiB decoded, and {most_bytes / (1 << 30):.2f} GiB are allowed; take "
                    "data.division auto"
                )
    bad = [unreadable for chunk in chunks for unreadable in chunk.bad]
    if len(bad) == len(source):
        raise DataError(f"none of the {len(source)} images of {source.location} can be read; the first: {bad[0]}")
    return _laid_out(chunks, (len(source), height, width), bad)


def _laid_out(chunks: "list[_Chunk]", shape: tuple[int, int, int], bad: list[UnreadableImage]) -> Resident:
    """Move images into one array, which empties the chunks, and let each that is missing be the next."""
    num, height, width = shape
    pixels, sizes = np.zeros((num, 3, height, width), dtype=np.uint8), np.zeros((num, 2), dtype=np.int64)
    reducible = np.zeros(num, dtype=bool)
    index = 0
    for chunk in chunks:
        for image, is_reducible in zip(chunk.images, chunk.reducible, strict=True):
            if image is not None:
                pixels[index, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
                sizes[index], reducible[index] = image.shape[:2], is_reducible
            index += 1
        chunk.images.clear()
    readable = sizes[:, 0] > 0
    if not readable.all():
        present = np.flatnonzero(readable)
        missing = np.flatnonzero(~readable)
        instead = present[np.searchsorted(present, missing) % len(present)]
        for values in (pixels, sizes, reducible):
            values[missing] = values[instead]
    return Resident(torch.from_numpy(pixels), torch.from_numpy(sizes), torch.from_numpy(reducible), tuple(bad))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some images after the other: (h, w, 3), or None for one that cannot be read; whether reducible; why not."""

    images: list[NDArray[np.uint8] | None]
    reducible: list[bool]
    bad: list[UnreadableImage]


class _Chunks:
    """The images of a source in chunks."""

    def __init__(self, source: StoredSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return -(-len(self._source) // _CHUNK)

    def __getitem__(self, number: int) -> _Chunk:
        chunk = _Chunk([], [], [])
        for index in range(number * _CHUNK, min(len(self._source), (number + 1) * _CHUNK)):
            try:
                image, is_reducible = _decoded(self._source, index)
            except UnreadableImage as error:
                image, is_reducible = None, False
                chunk.bad.append(error)
            chunk.images.append(image)
            chunk.reducible.append(is_reducible)
        return chunk


def _decoded(source: StoredSource, index: int) -> tuple[NDArray[np.uint8] | None, bool]:
    """Pixels, and whether they could have been decoded smaller."""
    stored = source.fetch(index)
    if not isinstance(stored, bytes):
        return stored, False
    opened = open_image(stored, source.where(index), apply_exif=source.apply_exif)
    return opened.pixels(), opened.is_reducible
