"""SHA-256 of files, taken while they are written, and the lines in which `sha256sum` keeps it."""

import hashlib
import re
from pathlib import Path
from typing import BinaryIO

_LINE = re.compile(rb"([0-9a-fA-F]{64})[ \t]+\*?(.+?)\n?")
_BLOCK_BYTES = 1 << 20


class HashedWriter:
    """Hands on what is written to it, one piece after another, and hashes it on the way; it cannot seek.

    Attributes:
        error: what ended the first write that failed. A library underneath may answer it with an error of its own.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Write to a file that is open."""
        self._file, self._digest = file, hashlib.sha256()
        self.error: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of it; returns the number of bytes."""
        try:
            self._file.write(data)
            self._digest.update(data)
        except BaseException as error:
            self.error = self.error or error
            raise
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Hand on what is held back."""
        self._file.flush()

    def hexdigest(self) -> str:
        """Of all that has been written."""
        return self._digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal; it takes about as long as reading it.

    Raises:
        OSError: it cannot be read.
    """
    digest, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(memoryview(block)[:size])
    return digest.hexdigest()


def checksum_path(path: Path) -> Path:
    """Where the checksum of a file stands: beside it."""
    return path.with_name(path.name + ".sha256")


def checksum_line(path: Path, digest: str) -> bytes:
    """A line as `sha256sum` writes it, for a file in the folder of the line's own."""
    return f"{digest}  {path.name}\n".encode()


def read_checksum(path: Path) -> str | None:
    """The digest that stands beside a file; None where what stands there is no such line.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    found = _LINE.fullmatch(checksum_path(path).read_bytes())
    return found[1].decode().lower() if found and found[2] == path.name.encode() else None
