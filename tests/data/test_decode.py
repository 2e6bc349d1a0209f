"""One image file of every kind: what comes out of it, or the words that say why nothing does."""

import os
import pickle
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from patchssl.data.decode import MAX_PIXELS, UnreadableImage, read_image, to_rgb
from patchssl.errors import DataError

WHITE, BLACK, RED, GREEN, BLUE = [255] * 3, [0] * 3, [255, 0, 0], [0, 255, 0], [0, 0, 255]
ORIENTATION = 0x112  # EXIF tag


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG file by hand; a row is a filter byte and its samples."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *(chunk(*item) for item in extra)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def read(path: Path, *, apply_exif: bool = True) -> NDArray[np.uint8]:
    image = read_image(path, apply_exif=apply_exif)
    assert image.mode == "RGB"
    return np.asarray(image)


def reason(path: Path) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_image(path, apply_exif=True)
    assert caught.value.path == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    return caught.value.reason


def test_16_bit_greyscale_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    """65535 / 257 = 255, so 257 n becomes n, and what lies between goes to the nearest."""
    values = [0, 128, 129, 257, 32768, 65278, 65535, 1000]
    path = tmp_path / "grey.png"
    path.write_bytes(png(8, 1, 16, 0, b"\0" + struct.pack(">8H", *values)))
    assert read(path).tolist() == [[[value] * 3 for value in (0, 0, 1, 1, 128, 254, 255, 4)]]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_every_byte_order_of_16_bits_gives_the_same(mode: str) -> None:
    """All 65536 values against division in exact integers."""
    values = np.arange(65536)
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (256, 256), values.astype(dtype).tobytes())
    expected = (2 * values + 257) // (2 * 257)  # to the nearest; 257 is odd, so there are no ties
    assert (np.asarray(to_rgb(image)).reshape(-1, 3) == expected[:, None]).all()


HAND_MADE = {
    "rgb, 16 bits": (
        png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 32768, 65535, 257, 65535, 25700)),
        [[0, 128, 255], [1, 255, 100]],
    ),
    "rgba": (
        png(3, 1, 8, 6, b"\0" + bytes([255, 0, 0, 255, 255, 0, 0, 0, 0, 0, 255, 51])),
        [RED, WHITE, [204] * 2 + [255]],
    ),
    "grey and alpha": (png(3, 1, 8, 4, b"\0" + bytes([0, 255, 0, 0, 100, 255])), [BLACK, WHITE, [100] * 3]),
    "grey": (png(2, 1, 8, 0, b"\0" + bytes([7, 200])), [[7] * 3, [200] * 3]),
    "black and white": (png(8, 1, 1, 0, b"\0\xa0"), [WHITE, BLACK, WHITE] + [BLACK] * 5),
    "2 bits": (png(4, 1, 2, 0, b"\0\x1b"), [[0] * 3, [85] * 3, [170] * 3, [255] * 3]),
    "palette": (png(2, 1, 8, 3, bytes([0, 1, 0]), (b"PLTE", bytes(RED + BLUE))), [BLUE, RED]),
    "palette with transparency": (
        png(3, 1, 8, 3, bytes([0, 0, 1, 2]), (b"PLTE", bytes(RED + BLUE + GREEN)), (b"tRNS", bytes([0, 255, 204]))),
        [WHITE, BLUE, [51, 255, 51]],
    ),
    "a transparent colour": (
        png(2, 1, 8, 2, bytes([0, *RED, *GREEN]), (b"tRNS", struct.pack(">3H", *RED))),
        [WHITE, GREEN],
    ),
    "a transparent grey": (png(2, 1, 8, 0, bytes([0, 10, 20]), (b"tRNS", struct.pack(">H", 10))), [WHITE, [20] * 3]),
}


@pytest.mark.parametrize("kind", HAND_MADE)
def test_png_worked_by_hand(kind: str, tmp_path: Path) -> None:
    content, expected = HAND_MADE[kind]
    (tmp_path / "a.png").write_bytes(content)
    assert read(tmp_path / "a.png").tolist() == [expected]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    """No ink is white, full cyan has no red."""
    inks = np.zeros((16, 32, 4), dtype=np.uint8)
    inks[:, 16:, 0] = 255
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=100)
    pixels = read(tmp_path / "a.jpg").astype(int)
    assert np.abs(pixels[:, :16] - WHITE).max() <= 2
    assert np.abs(pixels[:, 16:] - [0, 255, 255]).max() <= 2


def test_exif_orientation_is_applied_on_request_only(tmp_path: Path) -> None:
    """Orientation 6: the stored rows are the upright picture's columns from the right."""
    stored = np.array([[RED, GREEN], [BLUE, WHITE], [BLACK, RED]], dtype=np.uint8)  # 3 high, 2 wide
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert read(tmp_path / "a.png", apply_exif=False).tolist() == stored.tolist()
    assert read(tmp_path / "a.png", apply_exif=True).tolist() == [[BLACK, BLUE, RED], [RED, WHITE, GREEN]]


def test_exif_orientation_of_a_photograph(tmp_path: Path) -> None:
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, :16] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[ORIENTATION] = 3  # upside down
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg", apply_exif=False)[:, :16].mean() > 250
    assert read(tmp_path / "a.jpg", apply_exif=True)[:, -16:].mean() > 250


@pytest.mark.parametrize(("suffix", "kind"), [("gif", "GIF"), ("jpg", "MPO"), ("tif", "TIFF"), ("webp", "WEBP")])
def test_first_of_several_frames(suffix: str, kind: str, tmp_path: Path) -> None:
    """Animations, pages, and what telephones write as .jpg."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, format=kind, save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert np.abs(read(path).astype(int) - RED).max() <= 5


def test_a_name_does_not_decide_the_format(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "blue").save(tmp_path / "a.jpg", format="BMP")
    assert read(tmp_path / "a.jpg").tolist() == [[BLUE] * 3] * 2


@pytest.mark.parametrize("name", ["with space.png", "grün-日本.png", "new\nline.png", "UPPER.PNG", "é\u0301.png"])
def test_names_of_all_kinds(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(png(1, 1, 8, 2, bytes([0, *RED])))
    assert read(tmp_path / name).tolist() == [[RED]]


def test_reading_does_not_hold_the_file_open(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(1, 1, 8, 2, bytes([0, *RED])))
    image = read_image(path, apply_exif=False)
    path.write_bytes(b"")
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_truncated_jpeg(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    assert reason(tmp_path / "a.jpg").startswith("cannot be decoded: image file is truncated (")


@pytest.mark.parametrize("keep", range(1, 57, 7))
def test_a_file_cut_anywhere_gives_a_reason(keep: int, tmp_path: Path) -> None:
    content = png(3, 3, 8, 2, bytes([0, *RED, *RED, *RED] * 3))
    (tmp_path / "a.png").write_bytes(content[:keep])
    assert reason(tmp_path / "a.png")


def test_a_bomb_is_refused_at_once_and_without_its_memory(tmp_path: Path) -> None:
    """Both sides of Pillow's own limit of 2 * 89,478,485 pixels."""
    for side, pixels in ((30_000, "900,000,000"), (12_000, "144,000,000")):
        (tmp_path / "a.png").write_bytes(png(side, side, 1, 0, b"\0" * 1000))
        tracemalloc.start()
        start = time.perf_counter()
        told = reason(tmp_path / "a.png")
        seconds = time.perf_counter() - start
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert told == f"has {pixels} pixels; at most 100,000,000 are read, shrink it"
        assert seconds < 1
        assert peak < 1_000_000


def test_the_limit_itself_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PIXELS == 100_000_000
    monkeypatch.setattr("patchssl.data.decode.MAX_PIXELS", 12)
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").shape == (3, 4, 3)
    Image.new("RGB", (13, 1)).save(tmp_path / "a.png")
    assert reason(tmp_path / "a.png") == "has 13 pixels; at most 12 are read, shrink it"


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    assert "no known range; convert it to 8 bits" in reason(tmp_path / "a.tif")
    Image.fromarray(np.full((2, 2), 65536, dtype=np.int32)).save(tmp_path / "a.tif")
    assert "beyond 16 bits" in reason(tmp_path / "a.tif")


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert reason(tmp_path / "empty.jpg") == "is empty (0 bytes)"
    (tmp_path / "text.jpg").write_text("hello")
    assert reason(tmp_path / "text.jpg").startswith("is not an image of a known format (JPEG, ")
    (tmp_path / "folder.jpg").mkdir()
    assert reason(tmp_path / "folder.jpg") == "Is a directory"
    assert reason(tmp_path / "missing.jpg") == "No such file or directory"
    assert "null" in reason(tmp_path / "a\0b.jpg")


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    Image.new("RGB", (2, 2)).save(tmp_path / "a.jpg", format="EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    assert "not an image of a known format" in reason(tmp_path / "a.jpg")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1, 1, 8, 2, bytes([0, *RED])))
    (tmp_path / "a.png").chmod(0)
    assert reason(tmp_path / "a.png") == "Permission denied"


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_damaged_files_raise_nothing_else(suffix: str, tmp_path: Path) -> None:
    """Bytes of a small file are changed at random: an image or a reason, and no other error or warning."""
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    reasons = []
    for _ in range(60):
        damaged = content.copy()
        damaged[rng.integers(0, len(damaged), 2)] = rng.integers(0, 256, 2)
        path.write_bytes(damaged.tobytes())
        try:
            assert read_image(path, apply_exif=True).mode == "RGB"
        except UnreadableImage as error:
            reasons.append(error.reason)
    assert len(reasons) > 3
    assert all(reasons)


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a/b.jpg", "is empty (0 bytes)")))
    assert isinstance(error, UnreadableImage)
    assert isinstance(error, DataError)
    assert (error.path, error.reason, str(error)) == ("a/b.jpg", "is empty (0 bytes)", "a/b.jpg: is empty (0 bytes)")
