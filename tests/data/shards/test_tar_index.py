"""Where images lie in tar files, and what is said of files that are no good."""

import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patchssl.data.shards.tar_index import LOST, NOT_STORED, TarIndex, index_tar
from patchssl.errors import DataError


def look(path: Path) -> TarIndex:
    return index_tar(path, path.name)


def named(path: Path, *names: str, **options: Any) -> Path:
    """A tar file of members whose content is their name."""
    with tarfile.open(path, "w", **options) as archive:
        for name in names:
            about = tarfile.TarInfo(name)
            content = name.encode(errors="surrogateescape")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path


def contents(path: Path, index: TarIndex) -> list[bytes]:
    whole = path.read_bytes()
    return [whole[at : at + size] for at, size in zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)]


ODD = [
    "a b.png",
    'it\'s "x".png',
    "new\nline.png",
    "日本/é.png",
    "\udcff\udcfe.png",
    "x" * 300 + ".png",
    "../up.png",
    "/root.png",
]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_places_and_names_are_those_of_the_members(tmp_path: Path, kind: int) -> None:
    path = named(tmp_path / "x.tar", *ODD, format=kind, encoding="utf-8", errors="surrogateescape")
    index = look(path)
    assert list(index.names) == ODD
    assert contents(path, index) == [name.encode(errors="surrogateescape") for name in ODD]
    assert (index.lost, index.told) == ("", {})
    assert [file.name for file in tmp_path.iterdir()] == ["x.tar"]  # nothing is extracted


def test_one_image_of_each_sample(tmp_path: Path) -> None:
    """A sample is what follows one another with the same name up to the first dot."""
    members = [
        "a/1.seg.png",
        "a/1.jpg",
        "a/1.cls",
        "b/1.JPG",
        "a/1.jpg",
        "2.txt",
        "2.v1.webp",
        "2.v2.webp",
        "._3.jpg",
        ".h/4.jpg",
    ]
    index = look(named(tmp_path / "x.tar", *members, "./5.gif"))
    assert list(index.names) == ["a/1.seg.png", "b/1.JPG", "a/1.jpg", "2.v1.webp", "5.gif"]
    assert index.told == {"further": (2, "a/1.jpg after a/1.seg.png"), "others": (2, "1 .cls, 1 .txt")}


def test_links_devices_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    kinds = {
        "hard.png": tarfile.LNKTYPE,
        "soft.png": tarfile.SYMTYPE,
        "pipe.png": tarfile.FIFOTYPE,
        "d.png": tarfile.DIRTYPE,
        "device.png": tarfile.CHRTYPE,
    }
    with tarfile.open(path, "w") as archive:
        for name, kind in kinds.items():
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, "/etc/passwd"
            archive.addfile(about)
    index = look(path)
    assert dict(zip(index.names, index.sizes.tolist(), strict=True)) == dict.fromkeys(
        ("hard.png", "soft.png", "pipe.png", "device.png"), NOT_STORED
    )


@pytest.mark.parametrize("kept", range(0, 4 * 1024 + 1, 256))
def test_a_file_cut_anywhere(tmp_path: Path, kept: int) -> None:
    """Of four members of a block each: whole ones stay, and that something is lost stays known."""
    names = [f"{number}.png" for number in range(4)]
    path = named(tmp_path / "x.tar", *names)
    path.write_bytes(path.read_bytes()[:kept])
    if kept == 0:
        with pytest.raises(DataError, match=r"^x\.tar is empty \(0 bytes\); fetch it again, or leave it out$"):
            look(path)
        return
    if kept < 512:
        with pytest.raises(DataError, match=r"^x\.tar is not a tar file \(.*\); fetch it again"):
            look(path)
        return
    index = look(path)
    whole = sum(1024 * number + 512 + 5 <= kept for number in range(4))
    assert list(index.names)[:whole] == names[:whole]
    if kept % 1024 == 0:
        assert (len(index), index.lost, index.told) == (whole, "", {"unended": (1, "x.tar")})
        return
    assert index.lost == f"x.tar is cut off: it ends at byte {kept:,}, in the middle of a member"
    assert len(index) == whole + 1  # an entry that is counted as unreadable
    last = int(index.sizes[-1])
    assert last == LOST or int(index.offsets[-1]) + last > kept


def test_a_damaged_header_in_the_middle(tmp_path: Path) -> None:
    path = named(tmp_path / "x.tar", *(f"{number}.png" for number in range(4)))
    content = bytearray(path.read_bytes())
    content[2 * 1024 : 2 * 1024 + 8] = b"nonsense"
    path.write_bytes(content)
    index = look(path)
    assert list(index.names) == ["0.png", "1.png", "(from byte 2048 on)"]
    assert index.sizes[-1] == LOST
    assert index.lost == (
        "x.tar is damaged at byte 2,048 (no header stands there); what follows, "
        f"{len(content) - 2048:,} bytes, cannot be read"
    )


def test_what_stands_behind_the_end_is_not_lost_in_silence(tmp_path: Path) -> None:
    one, other = named(tmp_path / "a.tar", "1.png"), named(tmp_path / "b.tar", "2.png")
    one.write_bytes(one.read_bytes() + other.read_bytes())
    index = look(one)
    assert list(index.names) == ["1.png", "(from byte 1024 on)"]
    assert "goes on for 19,456 bytes after its end mark at byte 1,024" in index.lost


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"\x1f\x8b" + bytes(600),
            "x.tar is compressed (gzip), which allows no random access, and hardly makes images smaller; "
            "unpack it: gunzip x.tar",
        ),
        (b"BZh" + bytes(600), "(bzip2)"),
        (b"\xfd7zXZ" + bytes(600), "(xz)"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "(zstd)"),
        (b"<html>" + b"x" * 2000, "x.tar is not a tar file (invalid header); fetch it again, or leave it out"),
        (b"\xff" * 2000, "is not a tar file"),
    ],
)
def test_what_is_no_tar_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        look(path)
    assert words in str(caught.value)


def test_archives_without_images(tmp_path: Path) -> None:
    path = named(tmp_path / "x.tar")
    assert len(look(path)) == 0
    named(path, "a.txt", "b.txt", "c")
    assert look(path).told == {"others": (3, "2 .txt, 1 without a suffix")}


def header(name: str, *, size: int = 0, kind: bytes = b"0") -> bytes:
    """A block as tar writes it, with any size, in base 256."""
    about = tarfile.TarInfo(name)
    about.type = kind
    block = bytearray(about.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = struct.pack(">Bxxxq", 0x80, size) if size >= 0 else b"\xff" * 4 + struct.pack(">q", size)
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "an image of 8 exabytes": lambda: header("a.png", size=2**62),
    "sizes that lead backwards": lambda: header("a.png") + header("b.png", size=-1024),
    "a size that leads nowhere": lambda: header("a.png", size=-512),
    "a name of 8 exabytes": lambda: header("a.png") + header("x", size=2**62, kind=b"L"),
    "a name of negative size": lambda: header("a.png") + header("x", size=-512, kind=b"L"),
    "PAX data of 8 exabytes": lambda: header("a.png") + header("x", size=2**62, kind=b"x"),
    "PAX data of negative size": lambda: header("a.png") + header("x", size=-2048, kind=b"x"),
    "names of names of names": lambda: header("a.png") + (header("x", size=1, kind=b"L") + bytes(512)) * 3000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_neither_hang_nor_fill_the_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(HOSTILE[name]() + bytes(4096))
    index = look(path)
    assert index.lost
    assert len(index) <= 3
    assert int(index.sizes[-1]) == LOST or int(index.offsets[-1] + index.sizes[-1]) > path.stat().st_size
