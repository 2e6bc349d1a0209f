"""Checksums: equal to those of sha256sum, and taken on the way."""

import hashlib
import io
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchssl.checksums import HashedWriter, checksum_line, checksum_path, file_sha256, read_checksum

# FIPS 180-4 and its examples: nothing, one block, two blocks.
TABLE = [
    (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (
        b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
    ),
]


@pytest.mark.parametrize(("data", "digest"), TABLE)
def test_the_digest_of_a_file_and_of_what_is_written(tmp_path: Path, data: bytes, digest: str) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        writer = HashedWriter(file)
        for place in range(0, len(data), 7):
            assert writer.write(memoryview(data)[place : place + 7]) == len(data[place : place + 7])
    assert writer.hexdigest() == digest
    assert file_sha256(path) == digest
    assert path.read_bytes() == data


@given(pieces=st.lists(st.binary(max_size=50), max_size=8))
def test_how_it_is_cut_does_not_matter(pieces: list[bytes]) -> None:
    file = io.BytesIO()
    writer = HashedWriter(file)
    for piece in pieces:
        writer.write(piece)
    assert file.getvalue() == b"".join(pieces)
    assert writer.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_files_larger_than_a_block(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_torch_writes_one_piece_after_another(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    with path.open("wb") as file:
        writer = HashedWriter(file)
        torch.save({"a": torch.arange(100_000), "b": torch.zeros(3)}, writer)  # type: ignore[arg-type]
    assert writer.hexdigest() == file_sha256(path)
    assert torch.load(path)["a"].tolist() == list(range(100_000))


def test_the_first_error_is_kept() -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    writer = HashedWriter(Full())
    with pytest.raises(OSError, match="No space"):
        writer.write(b"a")
    assert isinstance(writer.error, OSError)


def test_the_line_is_that_of_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    path.write_bytes(b"abc")
    line = checksum_line(path, file_sha256(path))
    assert line == b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  step-00000001.pt\n"
    checksum_path(path).write_bytes(line)
    assert checksum_path(path).name == "step-00000001.pt.sha256"
    assert read_checksum(path) == TABLE[1][1]
    if shutil.which("sha256sum"):
        check = ["sha256sum", "-c", checksum_path(path).name]
        assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 0
        path.write_bytes(b"abd")
        assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 1


@pytest.mark.parametrize("line", [b"", b"abc", b"0" * 63 + b"  file.pt\n", b"0" * 64 + b"  other.pt\n", b"\0" * 75])
def test_what_is_no_such_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "file.pt"
    checksum_path(path).write_bytes(line)
    assert read_checksum(path) is None


@pytest.mark.parametrize("end", ["  file.pt\n", " *file.pt\n", "  file.pt"])
def test_other_ways_of_writing_it(tmp_path: Path, end: str) -> None:
    path = tmp_path / "file.pt"
    checksum_path(path).write_text("AB" * 32 + end)
    assert read_checksum(path) == "ab" * 32


def test_no_line_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_checksum(tmp_path / "file.pt")
