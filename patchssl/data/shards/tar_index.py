"""Where the images of a tar file lie in it."""

import io
import os
import shlex
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from patchssl.data.decode import IMAGE_SUFFIXES
from patchssl.errors import DataError
from patchssl.names import Names

#: In place of a size: what stands under the name cannot be read at all, for the reason in `lost`.
LOST = -1
#: In place of a size: a link, a device or a sparse file, whose bytes do not stand in one piece.
NOT_STORED = -2

_BLOCK = 512
# Two blocks end an archive, and writers fill up to 10 KiB; what follows the end is looked at so far.
_LOOKED_AT = 1 << 20
_MOST_HEADER_BYTES = 1 << 22
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd --rm"),
}


@dataclass(frozen=True)
class TarIndex:
    """The images of a tar file, one for each sample.

    Attributes:
        names: M names of members, without a leading `./`.
        offsets: (M,) int64 where their bytes begin.
        sizes: (M,) int64 how many there are; LOST or NOT_STORED.
        lost: why the rest of the file could not be read; empty where nothing is lost.
        told: what else there is to say of it, with an example each: kind → (how many, example).
    """

    names: Names
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    lost: str = ""
    told: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)


def index_tar(path: Path, name: str) -> TarIndex:
    """Go through the headers of a tar file; nothing is extracted.

    Args:
        path: the file.
        name: for messages.

    Raises:
        DataError: it is no tar file, is compressed, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _Scan(file, name).index()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None


class _HeadersOnly(io.RawIOBase):
    """A file of which only small pieces are read, whatever sizes its headers claim."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


class _Scan:
    """Goes through one file."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._size = os.fstat(file.fileno()).st_size
        self._names: list[str] = []
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        self._sample: tuple[str, str] | None = None  # of the member before: its sample's key, and the image taken
        self._kinds: Counter[str] = Counter()
        self._told: dict[str, tuple[int, str]] = {}

    def index(self) -> TarIndex:
        archive = self._opened()
        lost = self._members(archive)
        if lost and not (self._names and self._is_cut(len(self._names) - 1)):
            self._add(f"(from byte {archive.offset} on)", archive.offset, LOST)
        if self._kinds:
            self._told["others"] = (
                sum(self._kinds.values()),
                ", ".join(f"{num} {kind}" for kind, num in self._kinds.most_common(4)),
            )
        offsets, sizes = (np.array(values, dtype=np.int64) for values in (self._offsets, self._sizes))
        return TarIndex(Names.of(self._names), offsets, sizes, lost, self._told)

    def _opened(self) -> tarfile.TarFile:
        start = self._file.read(_BLOCK)
        self._file.seek(0)
        for magic, (kind, command) in _COMPRESSED.items():
            if start.startswith(magic):
                raise DataError(compressed(self._name, kind, command))
        if not start:
            raise DataError(f"{self._name} is empty (0 bytes); fetch it again, or leave it out")
        try:
            return tarfile.TarFile(
                fileobj=_HeadersOnly(self._file),
                mode="r",
                encoding="utf-8",
                errors="surrogateescape",
            )
        # What a damaged header raises is as varied as what it might hold.
        except Exception as error:
            told = str(error) or type(error).__name__
            raise DataError(f"{self._name} is not a tar file ({told}); fetch it again, or leave it out") from None

    def _members(self, archive: tarfile.TarFile) -> str:
        """Take all members; why the rest could not be read, or nothing."""
        before = 0
        while True:
            try:
                member = archive.next()
            except Exception as error:
                return self._broken_off(archive.offset, str(error) or type(error).__name__)
            if member is None:
                return self._end(archive.offset)
            if archive.offset <= before or member.size < 0:
                return self._broken_off(before, "its sizes lead backwards")
            before = archive.offset
            archive.members.clear()  # type: ignore[attr-defined] # a kilobyte each
            self._take(member)

    def _take(self, member: tarfile.TarInfo) -> None:
        name = member.name.removeprefix("./")
        *folders, base = name.split("/")
        if member.isdir() or any(part.startswith(".") and part not in (".", "..") for part in (*folders, base)):
            return
        key = "/".join((*folders, base.partition(".")[0]))
        taken = self._sample[1] if self._sample is not None and self._sample[0] == key else ""
        suffix = os.path.splitext(base)[1].lower()  # noqa: PTH122 - millions of them
        if suffix not in IMAGE_SUFFIXES:
            self._kinds[suffix or "without a suffix"] += 1
        elif taken:
            count, example = self._told.get("further", (0, f"{name} after {taken}"))
            self._told["further"] = (count + 1, example)
        else:
            taken = name
            is_stored = member.isreg() and member.sparse is None
            self._add(name, member.offset_data, member.size if is_stored else NOT_STORED)
        self._sample = (key, taken)

    def _add(self, name: str, offset: int, size: int) -> None:
        self._names.append(name)
        self._offsets.append(offset)
        # Offsets and sizes of what lies beyond any file need not fit into 64 bits.
        self._sizes.append(min(size, 2**62))

    def _is_cut(self, row: int) -> bool:
        return self._sizes[row] >= 0 and self._offsets[row] + self._sizes[row] > self._size

    def _end(self, offset: int) -> str:
        """Look whether the file ends where its headers do."""
        self._file.seek(offset)
        block = self._file.read(_BLOCK)
        if not block:
            self._told["unended"] = (1, self._name)
            return ""
        if len(block) < _BLOCK:
            return self._broken_off(offset, "unexpected end of data")
        if block.strip(b"\0"):
            return self._broken_off(offset, "no header stands there")
        if self._file.read(_LOOKED_AT).strip(b"\0"):
            rest = self._size - offset
            return (
                f"{self._name} goes on for {rest:,} bytes after its end mark at byte {offset:,}; unpack and pack again"
            )
        return ""

    def _broken_off(self, offset: int, told: str) -> str:
        if offset >= self._size or told == "unexpected end of data":
            return f"{self._name} is cut off: it ends at byte {self._size:,}, in the middle of a member"
        return (
            f"{self._name} is damaged at byte {offset:,} ({told}); what follows, {self._size - offset:,} bytes, cannot "
            "be read"
        )


def compressed(name: str, kind: str, command: str) -> str:
    """What to say of a compressed tar file."""
    file = shlex.quote(name.rpartition("/")[2] if "://" in name else name)
    return (
        f"{name} is compressed ({kind}), which allows no random access, and hardly makes images smaller; unpack it: "
        f"{command} {file}"
    )
