"""An image file → upright 8-bit RGB, or a reason why not."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from patchssl.data.at_work import note
from patchssl.errors import DataError

MAX_PIXELS = 100_000_000

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jfif"})


# Only these decoders run, whatever a file's name says; Pillow's others reach as far as starting Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP")

_ORIENTATION, _UPRIGHT = 0x0112, 1
# Turned by a quarter or mirrored along a diagonal, so that height and width change places.
_LYING = (5, 6, 7, 8)


class UnreadableImage(DataError):  # noqa: N818 - it says what came, as the report does
    """An image that cannot be used.

    Attributes:
        path: the file.
        reason: why, in words.
    """

    def __init__(self, path: str, reason: str) -> None:
        """Keep both parts; they also survive pickling between processes."""
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_image(path: str | os.PathLike[str], *, apply_exif: bool) -> Image.Image:
    """Read a file as 8-bit RGB; see `decode`.

    Raises:
        UnreadableImage: as `file_content` and `decode` do.
    """
    return decode(file_content(path), str(path), apply_exif=apply_exif)


def file_content(path: str | os.PathLike[str]) -> bytes:
    """Read a file.

    Raises:
        UnreadableImage: it is missing or cannot be opened.
    """
    note(f"read {path}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(str(path), error.strerror or "cannot be opened") from None
    except ValueError as error:  # a name that no file can have
        raise UnreadableImage(str(path), f"cannot be opened: {error}") from None


def decode(content: bytes, name: str, *, apply_exif: bool) -> Image.Image:
    """Decode the content of an image file to 8-bit RGB.

    CMYK and palettes are converted, 16-bit values scaled to 8 bits, transparent parts laid over white.

    Args:
        content: of the file.
        name: for messages.
        apply_exif: turn the picture upright by its EXIF orientation. The reference evaluations do not.

    Raises:
        UnreadableImage: truncated, no image, of no known kind, or above MAX_PIXELS.
    """
    opened = open_image(content, name, apply_exif=apply_exif)
    return opened.decoded()


@dataclass(frozen=True)
class OpenedImage:
    """An image file whose size is known and whose pixels are not decoded yet.

    Attributes:
        image: as Pillow opened it.
        name: for messages.
        apply_exif: turn the picture upright.
    """

    image: Image.Image
    name: str
    apply_exif: bool

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the picture, upright where it is to be turned."""
        width, height = self.image.size
        return (width, height) if self._orientation() in _LYING else (height, width)

    def _orientation(self) -> object:
        """As the EXIF tag says, where pictures are to be turned; it may hold anything."""
        if not self.apply_exif:
            return _UPRIGHT
        with _as_unreadable(self.name), _without_warnings():
            return self.image.getexif().get(_ORIENTATION, _UPRIGHT)

    @property
    def is_reducible(self) -> bool:
        """Whether its decoder can make a smaller picture for less work: JPEG's, by 2, 4 and 8."""
        return self.image.format == "JPEG"

    def decoded(self, reduction: int = 1) -> Image.Image:
        """Decode as 8-bit RGB; only once.

        Args:
            reduction: 1, or for JPEG 2, 4 or 8: a pixel shows so many pixels of the file each way; the last ones of
                rows and columns show what is left (in a picture that was turned upright these may be the first).

        Raises:
            UnreadableImage: truncated, damaged, or of no known range.
        """
        with _as_unreadable(self.name), _without_warnings(), self.image:
            return to_rgb(self._loaded(reduction))

    def pixels(self, reduction: int = 1) -> NDArray[np.uint8]:
        """The same as an array (h, w, 3), which may be read only."""
        with _as_unreadable(self.name), _without_warnings(), self.image:
            image = self._loaded(reduction)
            return np.asarray(image if _is_plain_rgb(image) else to_rgb(image))

    def _loaded(self, reduction: int) -> Image.Image:
        note(f"decoded {self.name}")
        image = self.image
        if reduction > 1:
            width, height = image.size
            # It takes the largest reduction that leaves at least this size.
            image.draft(None, (max(1, width // reduction), max(1, height // reduction)))
            if image.size != (-(-width // reduction), -(-height // reduction)):
                raise ValueError(f"the decoder makes {image.size} of {(width, height)} px reduced by {reduction}")
        image.load()
        return image if self._orientation() == _UPRIGHT else ImageOps.exif_transpose(image)


def open_image(content: bytes, name: str, *, apply_exif: bool) -> OpenedImage:
    """Look at the header of an image file.

    Args:
        content: of the file.
        name: for messages.
        apply_exif: turn the picture upright.

    Raises:
        UnreadableImage: empty, of no known kind, or above MAX_PIXELS.
    """
    note(f"decoded {name}")
    with _as_unreadable(name, content), _without_warnings():
        image = Image.open(BytesIO(content), formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(name, _too_large(image.width * image.height))
        return OpenedImage(image, name, apply_exif)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """A file is used or left out with a reason; warnings about its metadata or size would add nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _as_unreadable(name: str, content: bytes | None = None) -> Iterator[None]:
    """Say in words why Pillow fails."""
    try:
        yield
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        # Pillow refuses before the size can be asked for and tells the number in its message only.
        found = re.search(r"\d+", str(error))
        raise UnreadableImage(name, _too_large(int(found[0])) if found else str(error)) from None
    except UnidentifiedImageError:
        known = f"is not an image of a known format ({', '.join(_FORMATS)})"
        raise UnreadableImage(name, "is empty (0 bytes)" if content == b"" else known) from None
    # Pillow's decoders raise many kinds of errors on damaged files, struct.error and IndexError among them.
    except Exception as error:
        raise UnreadableImage(name, f"cannot be decoded: {str(error) or type(error).__name__}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB.

    Raises:
        ValueError: floating-point pixels, or integers beyond 16 bits, whose range is unknown.
    """
    if _is_plain_rgb(image):
        return image.copy()
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode} beyond 16 bits have no known range; convert it to 8 bits")
        # 65535 / 257 = 255: the exact scale from 16 to 8 bits.
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image.convert("RGB")


def _is_plain_rgb(image: Image.Image) -> bool:
    return image.mode == "RGB" and "transparency" not in image.info


def _too_large(num_pixels: int) -> str:
    return f"has {num_pixels:,} pixels; at most {MAX_PIXELS:,} are read, shrink it"
