"""A fixed list of images behind one interface: files, or arrays in memory."""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchssl.data.decode import decode, file_content

#: What is kept of an image: the bytes of an image file, or RGB pixels (h, w, 3) uint8.
Stored: TypeAlias = bytes | NDArray[np.uint8]


class ImageSource(Protocol):
    """A fixed list of images."""

    @property
    def ids(self) -> Sequence[str]:
        """The relative path or name of each image."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(M,) places in classes, or None."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, sorted."""
        ...

    @property
    def name(self) -> str:
        """A short name of the data."""
        ...

    @property
    def location(self) -> str:
        """The path as it was given."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """Decode one image as RGB; raises UnreadableImage."""
        ...

    def fingerprint(self) -> str:
        """A hash that is equal for equal data on any machine."""
        ...

    def state(self) -> str:
        """A hash that changes whenever an image may have changed, even to one of equal size, or is read otherwise.

        It need not be equal on another machine, nor after copying; what is kept under it is never out of date.
        """
        ...


class StoredSource(ImageSource, Protocol):
    """A fixed list of images whose reading can be told from their decoding."""

    @property
    def apply_exif(self) -> bool:
        """Whether pictures are turned upright by their EXIF orientation."""
        ...

    def where(self, index: int) -> str:
        """How messages name an image, so that it is found."""
        ...

    def fetch(self, index: int) -> Stored:
        """Get an image as it is kept, without decoding it; raises UnreadableImage."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Image files below a root."""

    root: Path
    ids: Sequence[str]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    name: str
    location: str
    apply_exif: bool

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Image.Image:
        """Decode one image as RGB; raises UnreadableImage."""
        return decode(file_content(self.root / self.ids[index]), self.where(index), apply_exif=self.apply_exif)

    def where(self, index: int) -> str:
        """The file's path."""
        return str(self.root / self.ids[index])

    def fetch(self, index: int) -> Stored:
        """The file's content; raises UnreadableImage."""
        return file_content(self.root / self.ids[index])

    def fingerprint(self) -> str:
        """Hash of every relative path, size in bytes and label; contents are not read."""
        digest = hashlib.sha256()
        for index, relative in enumerate(self.ids):
            found = _stat(self.root / relative)
            size = found.st_size if found is not None and stat.S_ISREG(found.st_mode) else -1
            label = "" if self.labels is None else self.classes[self.labels[index]]
            digest.update(f"{Path(relative).as_posix()}\0{size}\0{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def state(self) -> str:
        """Hash of every relative path, label, inode, size, time of writing and of change, and of how files are read."""
        digest = hashlib.sha256(f"exif {self.apply_exif}\n".encode())
        for index, relative in enumerate(self.ids):
            label = "" if self.labels is None else self.classes[self.labels[index]]
            digest.update(f"{relative}\0{label}\0{_times(self.root / relative)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class ArraySource:
    """Images held in memory: pixels (M, h, w, 3) uint8."""

    pixels: NDArray[np.uint8]
    ids: tuple[str, ...]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    name: str
    location: str
    apply_exif: bool = False

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Image.Image:
        """One image as RGB."""
        return Image.fromarray(self.pixels[index])

    def where(self, index: int) -> str:
        """The path as it was given and the name."""
        return f"{self.location}: {self.ids[index]}"

    def fetch(self, index: int) -> Stored:
        """The pixels."""
        pixels: NDArray[np.uint8] = self.pixels[index]
        return pixels

    def fingerprint(self) -> str:
        """Hash of all pixels and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes())
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def state(self) -> str:
        """Hash of all pixels, their shape, and labels."""
        return hashlib.sha256(f"{self.pixels.shape} {self.fingerprint()}".encode()).hexdigest()


def _times(path: Path) -> str:
    """What changes with a file's content. Anyone can set the time of writing, but nobody that of the change."""
    found = _stat(path)
    return "missing" if found is None else f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _stat(path: Path) -> os.stat_result | None:
    """What is told of a file; None where there is none, or the name is one that no file can have."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None
