"""What is known of one image once it has been read and decoded."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchssl.data.decode import OpenedImage, UnreadableImage, open_image
from patchssl.data.images import Stored

#: A row for each image, 78 bytes, so that a million images take little. `width` and `height` are those of the upright
#: picture; `evenness` is one of VARIED, NEARLY_EVEN, EVEN; digests are half a SHA-256, two words of 64 bits.
FACTS = np.dtype(
    [
        ("is_readable", np.bool_),
        ("num_bytes", np.int64),
        ("width", np.int32),
        ("height", np.int32),
        ("format", "S8"),
        ("colours", "S8"),
        ("is_16_bit", np.bool_),
        ("has_alpha", np.bool_),
        ("is_turned", np.bool_),
        ("evenness", np.uint8),
        ("file", np.uint64, (2,)),
        ("pixels", np.uint64, (2,)),
    ]
)
VARIED, NEARLY_EVEN, EVEN = 0, 1, 2
EVEN_LEVELS = 8
EVEN_FRACTION = 0.99

_ARRAY_FORMAT = b"array"
_ORIENTATION = 0x0112
_COLOURS = {
    **dict.fromkeys(("RGB", "RGBA", "RGBa", "RGBX"), b"RGB"),
    **dict.fromkeys(("1", "L", "LA", "La", "F"), b"grey"),
    **dict.fromkeys(("P", "PA"), b"palette"),
    "CMYK": b"CMYK",
}
_WITH_ALPHA = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})


@dataclass(frozen=True, eq=False, slots=True)
class Facts:
    """What was found in M images.

    Attributes:
        table: (M,) of dtype FACTS.
        reasons: why an image cannot be read, by its place, in order.
    """

    table: NDArray[np.void]
    reasons: dict[int, str]

    @property
    def readable(self) -> NDArray[np.int64]:
        """The places of the images that can be read."""
        return np.flatnonzero(self.table["is_readable"])


def write_facts(row: np.void, stored: Stored, name: str, *, apply_exif: bool) -> None:
    """Find out everything about an image.

    Args:
        row: of dtype FACTS, all zeros; filled in as far as the image can be read.
        stored: the image as it is kept.
        name: for messages.
        apply_exif: turn it upright.

    Raises:
        UnreadableImage: it cannot be decoded as a whole.
    """
    content = stored if isinstance(stored, bytes) else stored.tobytes()
    row["num_bytes"] = len(content)
    if isinstance(stored, bytes):
        opened = open_image(content, name, apply_exif=apply_exif)
        _write_kind(row, opened)
        image = opened.decoded()
    else:
        row["format"], row["colours"] = _ARRAY_FORMAT, b"RGB"
        image = Image.fromarray(stored)
    row["width"], row["height"] = image.size
    row["evenness"] = evenness(image)
    row["file"] = digest(content)
    row["pixels"] = digest(f"{image.width} {image.height} ".encode(), image.tobytes())
    row["is_readable"] = True


def _write_kind(row: np.void, opened: OpenedImage) -> None:
    """Note what the file itself says; decoding changes it."""
    image = opened.image
    row["format"] = (image.format or "other").encode()
    row["colours"] = b"grey" if image.mode.startswith("I") else _COLOURS.get(image.mode, b"other")
    row["is_16_bit"] = is_16_bit(image)
    row["has_alpha"] = image.mode in _WITH_ALPHA or "transparency" in image.info
    opened.size_px  # noqa: B018 - raises where the EXIF data are damaged, as decoding would
    row["is_turned"] = opened.apply_exif and image.getexif().get(_ORIENTATION, 1) in range(2, 9)


def is_16_bit(image: Image.Image) -> bool:
    """Whether the file of an image that was opened, and not loaded yet, has more than 8 bits for a value.

    Pillow reads 16-bit grey as such and 16-bit colours as 8-bit ones; its decoder's arguments tell.
    """
    if image.mode.startswith(("I", "F")):
        return True
    tiles: list[Any] = getattr(image, "tile", [])
    arguments = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in tiles]
    return any(isinstance(value, str) and ";16" in value for given in arguments for value in given)


def evenness(image: Image.Image) -> int:
    """Whether an RGB picture shows one colour (EVEN), or nearly so.

    NEARLY_EVEN: in each channel at least EVEN_FRACTION of the pixels lie within EVEN_LEVELS of the channel's median, of
    256 levels.
    """
    counts = np.array(image.histogram()).reshape(3, 256)
    if (counts > 0).sum(axis=1).max() == 1:
        return EVEN
    num = image.width * image.height
    medians = (counts.cumsum(axis=1) < num / 2).sum(axis=1)
    near = [
        channel[max(0, median - EVEN_LEVELS) : median + EVEN_LEVELS + 1].sum()
        for channel, median in zip(counts, medians, strict=True)
    ]
    return NEARLY_EVEN if min(near) >= EVEN_FRACTION * num else VARIED


def digest(*pieces: bytes) -> NDArray[np.uint64]:
    """Half of the SHA-256 as two words: of a million images two collide by chance once in 10^26 data sets."""
    whole = hashlib.sha256()
    for piece in pieces:
        whole.update(piece)
    return np.frombuffer(whole.digest()[:16], "<u8")


def unreadable(error: UnreadableImage) -> str:
    """The reason, in one line."""
    return " ".join(error.reason.split())
