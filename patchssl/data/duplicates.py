"""Files of equal content in two sets of images."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from patchssl.data.images import FileSource

_CHUNK_BYTES = 1 << 20


def equal_files(ours: Sequence[Path], theirs: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Pairs of files with the same bytes, one of each side.

    Only files whose size occurs on both sides are read.

    Args:
        ours: files; one that cannot be read equals none.
        theirs: the same.
    """
    by_size: dict[int, list[Path]] = {}
    for path in ours:
        by_size.setdefault(_size(path), []).append(path)
    by_size.pop(-1, None)
    hashes: dict[int, dict[str, Path]] = {}
    found = []
    for path in theirs:
        size = _size(path)
        if size not in by_size:
            continue
        if size not in hashes:
            hashes[size] = {_hash(candidate): candidate for candidate in reversed(by_size[size])}
        digest = _hash(path)
        if digest and digest in hashes[size]:
            found.append((hashes[size][digest], path))
    return found


def paths_of(source: FileSource) -> list[Path]:
    """The files of a source, in its order."""
    return [source.root / image for image in source.ids]


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a third of the time for a million files
    except OSError:
        return -1


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()
