"""The folder that holds caches of images: whether it may, what else is in it, and one for each data and side.

    DIR/image-cache.json              what this folder is
    DIR/KEY/index.json                what is kept: of which images, how small, in shards of how many
    DIR/KEY/shard-00012.bin …         see `shard`

KEY follows from the state of every image, which any change of one changes, and from how small they are kept: nothing is
ever overwritten by something else, and any KEY may be deleted at any time when no run uses it. The state is that of
files where they lie. Hosts that mount the same folder see the same, a copy of it has a KEY of its own.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import __version__ as pillow

from patchssl import __version__
from patchssl.atomic import replacing
from patchssl.errors import DataError

logger = logging.getLogger(__name__)

#: Also to be raised when images are shrunk in another way.
FORMAT = 1
KIND = "patchssl-image-cache"
MARK, INDEX = "image-cache.json", "index.json"
_KEY_DIGITS = 32
# What is on a fresh disk.
_EMPTY = frozenset({"lost+found"})
_NUM_NAMED = 4
_GIB, _MIB, _KIB = 1 << 30, 1 << 20, 1 << 10


@dataclass(frozen=True)
class Index:
    """What a cache holds.

    Attributes:
        location: of the images, as it was given.
        num_images: M.
        side: the shorter side of what is kept is at most this long, px.
        shard_images: in each shard but the last.
        state: of the images and how they are shrunk.
    """

    location: str
    num_images: int
    side: int
    shard_images: int
    state: str

    def told(self) -> str:
        """In short."""
        return f"{self.num_images:,} images of {self.location}, shorter side at most {self.side} px"


def check_root(root: Path) -> None:
    """Make sure that a folder may hold caches: it is new, empty, or one of ours.

    Raises:
        DataError: it holds something else, or was made by a newer version.
    """
    other = "give --cache-images a new or empty folder"
    try:
        if not root.exists():
            return
        if not root.is_dir():
            raise DataError(f"{root} is a file; {other}")
        # The mark is made first; looked for after the others, it is found where another process has just begun.
        names = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
        mark = _json(root / MARK)
        if mark is None:
            names = [name for name in names if name not in _EMPTY and not (root / name / INDEX).is_file()]
            if names:
                named = ", ".join(names[:_NUM_NAMED]) + (" …" if len(names) > _NUM_NAMED else "")
                raise DataError(f"{root} is no cache of images, it holds {named}; {other}")
            return
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}; {other}") from None
    except ValueError as error:
        told = f"{root / MARK} is damaged ({error}); remove it if {root} is a cache of images, else"
        raise DataError(f"{told} {other}") from None
    if mark.get("kind") != KIND or mark.get("format") != FORMAT:
        raise DataError(
            f"{root} is a cache of kind {mark.get('kind')!r} and format {mark.get('format')!r}, made by patchssl "
            f"{mark.get('patchssl')}; this version uses format {FORMAT}: {other}"
        )


def key_of(state: str) -> str:
    """The name of the folder of a cache, by the state of its images and how they are shrunk."""
    return hashlib.sha256(f"{KIND} {FORMAT}\n{state}".encode()).hexdigest()[:_KEY_DIGITS]


def make_folder(root: Path, folder: Path, index: Index) -> None:
    """Make the folder of a cache and say what it holds, and what the one above it is; raises OSError."""
    made_with = {"kind": KIND, "format": FORMAT, "patchssl": __version__}
    root.mkdir(parents=True, exist_ok=True)
    if not (root / MARK).exists():
        _write(root / MARK, made_with)
    folder.mkdir(exist_ok=True)
    if read_index(folder) is None:
        _write(folder / INDEX, {**made_with, "pillow": pillow, **asdict(index)})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_index(folder: Path) -> Index | None:
    """What a cache holds; None where that is not known, with a warning if it ought to be."""
    try:
        content = _json(folder / INDEX)
        if content is None:
            return None
        index = Index(**{name: kind(content[name]) for name, kind in Index.__annotations__.items()})
        if min(index.num_images, index.side, index.shard_images) < 1:
            raise ValueError("a number is below 1")
        return index
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s)", folder / INDEX, error)
        return None


def others(root: Path, folder: Path) -> list[tuple[Index, int]]:
    """What other caches a folder holds, and their bytes."""
    found = []
    for path in sorted(root.glob(f"*/{INDEX}")):
        if path.parent != folder and (index := read_index(path.parent)) is not None:
            found.append((index, num_bytes_in(path.parent)))
    return found


def num_bytes_in(folder: Path) -> int:
    """Of the files of a folder, those below it left out."""
    total = 0
    for file in folder.iterdir():
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue  # another process has just put it in its place
    return total


def told_bytes(num: float) -> str:
    """As a number of GiB, or of smaller units."""
    for unit, size in (("GiB", _GIB), ("MiB", _MIB)):
        if num >= size:
            return f"{num / size:,.1f} {unit}"
    return f"{num / _KIB:,.1f} KiB"


def _json(path: Path) -> Mapping[str, Any] | None:
    """A mapping in a file, None where there is no file; raises OSError, or ValueError for something else."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return content
