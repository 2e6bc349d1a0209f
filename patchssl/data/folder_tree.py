"""The image files of a folder and of all folders below it, and which of these have to be looked at again later."""

import logging
import os
import stat
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from patchssl.data.decode import IMAGE_SUFFIXES
from patchssl.data.mounts import untold_devices
from patchssl.names import Names

logger = logging.getLogger(__name__)

#: Device, inode, time of writing and of change (ns) of a folder, each in 64 bits.
Stamp: TypeAlias = tuple[int, int, int, int]

#: What a folder is: listed; listed so lately that it may have changed since under the same times; one that cannot be
#: listed; a link that leads back up and is not followed.
LISTED, FRESH, UNREADABLE, LOOP = range(4)

# Times of some file systems come in steps of up to two seconds.
_STEP_NS = 2_000_000_000
_64_BITS = (1 << 64) - 1
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Tree:
    """What was found below a root. Paths are relative to it; its own is empty.

    Attributes:
        files: (M,) all image files, sorted.
        folders: (F,) all folders, each behind the one that it lies in.
        stamps: (F, 4) uint64, of each before it was listed.
        states: (F,) uint8, what each is.
        reals: (F,) where each lies that was reached by a link; empty for the others.
        links: links that led to no folder.
        num_listed: how many folders were listed for this.
    """

    files: Names
    folders: Names
    stamps: NDArray[np.uint64]
    states: NDArray[np.uint8]
    reals: Names
    links: Names
    num_listed: int

    def known(self) -> Iterator[tuple[str, Stamp, int, str]]:
        """Path, stamp, state and place of each folder."""
        paths, reals = iter(self.folders), iter(self.reals)
        for first in range(0, len(self.folders), _CHUNK):
            rows = slice(first, first + _CHUNK)
            for stamp, state in zip(self.stamps[rows].tolist(), self.states[rows].tolist(), strict=True):
                yield next(paths), tuple(stamp), state, next(reals)


@dataclass(slots=True)
class Found:
    """A tree that grows."""

    root: str
    untold: frozenset[int]
    files: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    folders: dict[str, tuple[int, str]] = field(default_factory=dict)
    stamps: "array[int]" = field(default_factory=lambda: array("Q"))
    num_listed: int = 0

    @classmethod
    def below(cls, root: Path) -> "Found":
        """Nothing yet."""
        return cls(str(root), untold_devices())

    def full(self, path: str) -> str:
        """Where a path leads from here."""
        return os.path.join(self.root, path) if path else self.root  # noqa: PTH118 - paths are text here

    def add(self, path: str, stamp: Stamp, state: int, real: str) -> None:
        """Note a folder."""
        self.folders[path] = state, real
        self.stamps.extend(stamp)

    def list_folder(self, path: str, real: str) -> list[tuple[str, bool]]:
        """Note a folder and what it holds; returns its folders that are not hidden, and which of them are links."""
        full = self.full(path)
        self.num_listed += 1
        try:
            stamp, state = self._stamped(full)
            files, folders, links = _entries(full)
        except OSError as error:
            logger.warning("folder left out: %s: %s", error.filename, error.strerror)
            self.add(path, folder_stamp(full) or (0, 0, 0, 0), UNREADABLE, real)
            return []
        self.add(path, stamp, state, real)
        prefix = path + os.sep if path else ""
        self.files += [prefix + name for name in files]
        self.links += [prefix + name for name in links]
        return folders

    def walk(self, path: str, *, is_link: bool) -> None:
        """Note a folder and all below it; links are followed unless they lead back up."""
        above = frozenset(os.path.realpath(self.full(part)) for part in _above(path))
        stack = [(path, os.path.realpath(self.full(path)), is_link, above)]
        while stack:
            path, real, is_link, above = stack.pop()
            told = real if is_link else ""
            if real in above:
                self.add(path, folder_stamp(self.full(path)) or (0, 0, 0, 0), LOOP, told)
                continue
            folders = self.list_folder(path, told)
            prefix, below = (path + os.sep if path else ""), above | {real} if folders else above
            for name, leads in folders:
                # A folder that is no link lies in the one above it; nobody need be asked.
                place = os.path.realpath(self.full(prefix + name)) if leads else os.path.join(real, name)  # noqa: PTH118
                stack.append((prefix + name, place, leads, below))

    def tree(self) -> Tree:
        """What was found."""
        paths = sorted(self.folders)  # a folder's path begins with that of the one it lies in
        place = {path: number for number, path in enumerate(self.folders)}
        order = np.fromiter((place[path] for path in paths), np.int64, len(paths))
        return Tree(
            files=Names.of(sorted(self.files)),
            folders=Names.of(paths),
            stamps=np.frombuffer(self.stamps, dtype=np.uint64).reshape(-1, 4)[order],
            states=np.fromiter((self.folders[path][0] for path in paths), np.uint8, len(paths)),
            reals=Names.of(self.folders[path][1] for path in paths),
            links=Names.of(sorted(self.links)),
            num_listed=self.num_listed,
        )

    def _stamped(self, full: str) -> tuple[Stamp, int]:
        """A folder's stamp from before it is listed, and whether it would tell of every change after that."""
        now, found = time.time_ns(), os.stat(full)  # noqa: PTH116 - paths are text here
        is_old = now - max(found.st_mtime_ns, found.st_ctime_ns) >= _STEP_NS
        return _stamp_of(found), LISTED if is_old and found.st_dev not in self.untold else FRESH


def find(root: Path) -> Tree:
    """List a folder and all folders below it.

    Image files are those with a suffix that is read, links to them and links to nothing of such a name among them. What
    begins with a dot is left out, and so are folders that cannot be listed, which the log tells.
    """
    found = Found.below(root)
    found.walk("", is_link=False)
    return found.tree()


def _stamp_of(found: os.stat_result) -> Stamp:
    return (
        found.st_dev & _64_BITS,
        found.st_ino & _64_BITS,
        found.st_mtime_ns & _64_BITS,
        found.st_ctime_ns & _64_BITS,
    )


def folder_stamp(full: str) -> Stamp | None:
    """The stamp of what lies at a path; None where that is no folder."""
    try:
        found = os.stat(full)  # noqa: PTH116 - paths are text here
    except OSError:
        return None
    return _stamp_of(found) if stat.S_ISDIR(found.st_mode) else None


def _above(path: str) -> Iterator[str]:
    """The folders that a path lies in, up to the root."""
    while path:
        path = path.rpartition(os.sep)[0]
        yield path


def _entries(full: str) -> tuple[list[str], list[tuple[str, bool]], list[str]]:
    """Names of image files, of folders and whether these are links, and of links to anything else."""
    files, folders, links = list[str](), list[tuple[str, bool]](), list[str]()
    with os.scandir(full) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append((name, entry.is_symlink()))
                continue
            if name[name.rfind(".") :].lower() in IMAGE_SUFFIXES:
                files.append(name)
            if entry.is_symlink():
                links.append(name)
    return files, folders, links


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # as of a link to itself
        return False
