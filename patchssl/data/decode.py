"""An image file → upright 8-bit RGB, or a reason why not."""

import os
import re
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from patchssl.errors import DataError

MAX_PIXELS = 100_000_000

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jfif"})


# Only these decoders run, whatever a file's name says; Pillow's others reach as far as starting Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "TIFF", "WEBP")


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
    """Read a file as 8-bit RGB.

    CMYK and palettes are converted, 16-bit values scaled to 8 bits, transparent parts laid over white.

    Args:
        path: the file.
        apply_exif: turn the picture upright by its EXIF orientation. The reference evaluations do not.

    Raises:
        UnreadableImage: missing, truncated, no image, of no known kind, or above MAX_PIXELS.
    """
    try:
        with Path(path).open("rb") as file:
            return _decode(file, str(path), apply_exif)
    except OSError as error:
        raise UnreadableImage(str(path), error.strerror or "cannot be opened") from None
    except ValueError as error:  # a name that no file can have
        raise UnreadableImage(str(path), f"cannot be opened: {error}") from None


def _decode(file: BinaryIO, name: str, apply_exif: bool) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # A file is used or left out with a reason; warnings about its metadata or size would add nothing.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnreadableImage(name, _too_large(image.width * image.height))
                image.load()
                upright = ImageOps.exif_transpose(image) if apply_exif else image
                return to_rgb(upright)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        # Pillow refuses before the size can be asked for and tells the number in its message only.
        found = re.search(r"\d+", str(error))
        raise UnreadableImage(name, _too_large(int(found[0])) if found else str(error)) from None
    except UnidentifiedImageError:
        empty = os.fstat(file.fileno()).st_size == 0
        reason = "is empty (0 bytes)" if empty else f"is not an image of a known format ({', '.join(_FORMATS)})"
        raise UnreadableImage(name, reason) from None
    # Pillow's decoders raise many kinds of errors on damaged files, struct.error and IndexError among them.
    except Exception as error:
        raise UnreadableImage(name, f"cannot be decoded: {str(error) or type(error).__name__}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB.

    Raises:
        ValueError: floating-point pixels, or integers beyond 16 bits, whose range is unknown.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
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


def _too_large(num_pixels: int) -> str:
    return f"has {num_pixels:,} pixels; at most {MAX_PIXELS:,} are read, shrink it"
