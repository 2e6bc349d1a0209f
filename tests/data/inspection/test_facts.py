"""What is told of a single image, for files made by hand."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchssl.data.decode import UnreadableImage
from patchssl.data.images import Stored
from patchssl.data.inspection.facts import EVEN, FACTS, NEARLY_EVEN, VARIED, digest, evenness, write_facts

NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def facts_of(content: Stored, *, apply_exif: bool = True) -> Mapping[str, Any]:
    table = np.zeros(1, FACTS)
    write_facts(table[0], content, "x", apply_exif=apply_exif)
    return {name: table[0][name] for name in FACTS.names or ()}


def test_of_a_picture() -> None:
    content = stored(Image.fromarray(NOISE), "PNG")
    facts = facts_of(content)
    assert (facts["width"], facts["height"], facts["num_bytes"]) == (40, 30, len(content))
    assert (facts["format"], facts["colours"], facts["evenness"]) == (b"PNG", b"RGB", VARIED)
    assert [bool(facts[name]) for name in ("is_16_bit", "has_alpha", "is_turned")] == [False] * 3
    assert facts["is_readable"]
    assert facts["file"].tolist() == digest(content).tolist()


@pytest.mark.parametrize(
    ("mode", "kind", "colours", "is_16_bit", "has_alpha"),
    [
        ("RGB", "JPEG", b"RGB", False, False),
        ("L", "JPEG", b"grey", False, False),
        ("CMYK", "JPEG", b"CMYK", False, False),
        ("1", "PNG", b"grey", False, False),
        ("P", "GIF", b"palette", False, False),
        ("RGBA", "PNG", b"RGB", False, True),
        ("LA", "PNG", b"grey", False, True),
        ("RGB", "WEBP", b"RGB", False, False),
        ("I;16", "PNG", b"grey", True, False),
        ("I;16", "TIFF", b"grey", True, False),
    ],
)
def test_kinds(mode: str, kind: str, colours: bytes, is_16_bit: bool, has_alpha: bool) -> None:
    image = Image.fromarray(NOISE)
    image = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    facts = facts_of(stored(image, kind))
    assert (facts["format"], facts["colours"]) == (kind.encode(), colours)
    assert (facts["is_16_bit"], facts["has_alpha"]) == (is_16_bit, has_alpha)


def test_16_bits_for_each_colour() -> None:
    # 2 x 1 px, written by hand since Pillow writes no such files.
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" + struct.pack(">6H", 0, 1, 2, 65535, 65534, 7))
    facts = facts_of(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert facts["is_16_bit"]
    assert facts["colours"] == b"RGB"


@pytest.mark.parametrize(
    ("orientation", "is_turned", "size"), [(1, False, (40, 30)), (3, True, (40, 30)), (6, True, (30, 40))]
)
def test_turned_by_exif(orientation: int, is_turned: bool, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = stored(Image.fromarray(NOISE), "JPEG", exif=exif)
    facts = facts_of(content)
    assert (bool(facts["is_turned"]), (facts["width"], facts["height"])) == (is_turned, size)
    left = facts_of(content, apply_exif=False)
    assert not left["is_turned"]
    assert (left["width"], left["height"]) == (40, 30)


def test_equal_pixels_in_other_files_and_shapes() -> None:
    image = Image.fromarray(NOISE)
    files = [facts_of(stored(image, kind)) for kind in ("PNG", "BMP", "TIFF")]
    assert len({tuple(facts["file"]) for facts in files}) == 3
    assert len({tuple(facts["pixels"]) for facts in files}) == 1
    array = facts_of(NOISE)
    assert (array["format"], array["num_bytes"]) == (b"array", NOISE.size)
    assert tuple(array["pixels"]) == tuple(files[0]["pixels"])
    # The same values in rows of another length are another picture.
    other = facts_of(NOISE.reshape(40, 30, 3))
    assert tuple(other["pixels"]) != tuple(array["pixels"])


def test_one_colour_by_hand() -> None:
    even = np.full((10, 100, 3), (9, 200, 30), np.uint8)
    assert evenness(Image.fromarray(even)) == EVEN
    near = even.copy()
    near[::2] += 8  # half of the pixels at the bound of 8 levels
    assert evenness(Image.fromarray(near)) == NEARLY_EVEN
    near[::2] += 1
    assert evenness(Image.fromarray(near)) == VARIED
    spots = even.copy()
    spots[0, :10] = 255  # 1 % of 1,000 pixels
    assert evenness(Image.fromarray(spots)) == NEARLY_EVEN
    spots[0, 10] = 255
    assert evenness(Image.fromarray(spots)) == VARIED
    assert evenness(Image.fromarray(NOISE[:1, :1])) == EVEN
    # One channel that varies is enough.
    varied = even.copy()
    varied[..., 2] = np.arange(100)
    assert evenness(Image.fromarray(varied)) == VARIED


@pytest.mark.parametrize("content", [b"", b"no image", stored(Image.fromarray(NOISE), "PNG")[:-900]])
def test_damage_leaves_the_size_in_bytes(content: bytes) -> None:
    table = np.zeros(1, FACTS)
    with pytest.raises(UnreadableImage):
        write_facts(table[0], content, "x", apply_exif=True)
    assert table[0]["num_bytes"] == len(content)
    assert not table[0]["is_readable"]
