"""Images of which only a box is shown."""

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

from patchssl.data.decode import MAX_PIXELS, UnreadableImage
from patchssl.data.images import ImageSource
from patchssl.data.wrapped import WrappedSource

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxedSource(WrappedSource):
    """The images of a source, each cut to its box right after it is decoded, and so before any resizing.

    Attributes:
        source: M images.
        boxes: (M,) left, top, right, bottom in pixels of the stored image, half-open; None shows the whole image. They
            are rounded as Pillow's `crop` does, halves to even, and what lies outside the image is black, as there.
    """

    source: ImageSource
    boxes: tuple[Box | None, ...]

    def __post_init__(self) -> None:
        if len(self.boxes) != len(self.source):
            raise ValueError(f"{len(self.boxes)} boxes for {len(self.source)} images")

    def read(self, index: int) -> Image.Image:
        """The box of one image as RGB; raises UnreadableImage, also where the box shows nothing of the image."""
        image, box = self.source.read(index), self.boxes[index]
        if box is None:
            return image
        left, top, right, bottom = map(round, box)
        if min(right, image.width) <= max(left, 0) or min(bottom, image.height) <= max(top, 0):
            told = f"its box {box} shows nothing of the {image.width} x {image.height} px image"
            raise UnreadableImage(self.source.ids[index], told)
        if (right - left) * (bottom - top) > MAX_PIXELS:
            raise UnreadableImage(self.source.ids[index], f"its box {box} has more than {MAX_PIXELS:,} pixels")
        return image.crop(box)

    def fingerprint(self) -> str:
        """Hash of the source's fingerprint and the boxes."""
        return self._with_boxes(self.source.fingerprint())

    def state(self) -> str:
        """Hash of the source's state and the boxes."""
        return self._with_boxes(self.source.state())

    def _with_boxes(self, of_source: str) -> str:
        boxes = [None if box is None else [float(end) for end in box] for box in self.boxes]
        return hashlib.sha256(f"{of_source} {boxes}".encode()).hexdigest()
