"""Images shrunk to a limited shorter side, as a cache keeps them."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchssl.data.decode import OpenedImage, open_image
from patchssl.data.images import Stored, StoredSource
from patchssl.data.wrapped import WrappedSource
from patchssl.reductions import LEAST_OVERSAMPLING, REDUCTIONS


class WrappedStored(WrappedSource):
    """What a stored source of changed pixels has in common with the one that they come from.

    How the originals lie together on a disk is left out: a cache is read in any order, so that all of it is shuffled.
    """

    source: StoredSource

    @property
    def apply_exif(self) -> bool:
        """Whether pictures have been turned upright."""
        return self.source.apply_exif

    def where(self, index: int) -> str:
        """How the original is found."""
        return self.source.where(index)

    def fingerprint(self) -> str:
        """That of the originals."""
        return self.source.fingerprint()


@dataclass(frozen=True)
class ShrunkImages(WrappedStored):
    """A source whose images are decoded and shrunk when they are fetched.

    Attributes:
        source: of the originals.
        side: the shorter side is at most this long, px; smaller images stay as they are.
    """

    source: StoredSource
    side: int

    def size_px(self, index: int) -> tuple[int, int]:
        """Height and width; only the header of an image file is looked at. Raises UnreadableImage."""
        opened = self.opened(self.source.fetch(index), index)
        return shrunk_size(opened.size_px if isinstance(opened, OpenedImage) else opened.shape[:2], self.side)

    def opened(self, stored: Stored, index: int) -> OpenedImage | NDArray[np.uint8]:
        """What the source keeps of an image, ready to be decoded; raises UnreadableImage."""
        if not isinstance(stored, bytes):
            return stored
        return open_image(stored, self.where(index), apply_exif=self.apply_exif)

    def fetch(self, index: int) -> NDArray[np.uint8]:
        """Pixels (h, w, 3); raises UnreadableImage."""
        return shrunk(self.opened(self.source.fetch(index), index), self.side)

    def read(self, index: int) -> Image.Image:
        """The same as RGB."""
        return Image.fromarray(self.fetch(index))

    def state(self) -> str:
        """Changes with that of the originals and with the side."""
        return hashlib.sha256(f"shorter side {self.side} {self.source.state()}".encode()).hexdigest()


def shrunk(image: OpenedImage | NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Decode an image and shrink it by antialiased bicubic interpolation, unless it is small enough.

    Args:
        image: an image file that has been opened, or pixels (h, w, 3).
        side: the shorter side is to be at most this long, px.

    Returns:
        (h, w, 3).

    Raises:
        UnreadableImage: it is damaged.
    """
    if isinstance(image, OpenedImage):
        size = image.size_px
        reduction = reduction_for(size, side) if image.is_reducible else 1
        pixels = image.pixels(reduction)
    else:
        size, reduction, pixels = image.shape[:2], 1, image
    height, width = shrunk_size(size, side)
    if pixels.shape[:2] == (height, width):
        return pixels
    # The last of the decoded pixels each way may show less than the others do. (They may be the first in a picture that
    # was turned upright, which is then moved by less than half a pixel of what is kept.)
    edges = (0, 0, size[1] / reduction, size[0] / reduction)
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box=edges))


def shrunk_size(size_px: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width with a shorter side of at most `side` px, in the proportion of before as far as pixels allow."""
    shorter = min(size_px)
    if shorter <= side:
        return size_px
    # Whole numbers, rounded half up: the same on any machine.
    height, width = ((2 * length * side + shorter) // (2 * shorter) for length in size_px)
    return height, width


def reduction_for(size_px: tuple[int, int], side: int) -> int:
    """How much smaller a file may be decoded that is then shrunk to a shorter side: 1, 2, 4 or 8."""
    return max(by for by in REDUCTIONS if by == 1 or min(size_px) // by >= LEAST_OVERSAMPLING * side)
