"""The image files of a large folder, kept so that the next use need not list it."""

import contextlib
import hashlib
import json
import logging
import os
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from patchssl.atomic import replacing
from patchssl.data.decode import IMAGE_SUFFIXES
from patchssl.data.folder_tree import LISTED, Tree, find
from patchssl.data.tree_changes import find_again
from patchssl.names import Names
from patchssl.user_cache import user_cache

logger = logging.getLogger(__name__)

#: From so many image files on a listing is kept: below, listing takes a few hundredths of a second.
LEAST_FILES = 10_000
#: How many listings are kept; those that were written longest ago go first.
MOST_LISTINGS = 50

# Counts up when what is listed, or how it is kept, changes.
_FORMAT = 1
_UNUSABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
_ABANDONED_S = 86_400.0


def image_files(root: Path) -> Names:
    """Relative paths of all image files of a folder, sorted, at any depth; see `folder_tree.find`.

    The list of a folder with many files is kept in the user's cache folder, and the next time only what has changed is
    listed. A cache that cannot be read or written is none; the log tells.
    """
    kept = _place(root)
    before = None if kept is None else _load(kept, root)
    begun = time.perf_counter()
    tree = find(root) if before is None else find_again(root, before)
    if before is not None:
        num = 0 if tree is before else tree.num_listed
        logger.info(
            "%s: %d image files, from the listing %s; %d of %d folders had changed (%.1f s)",
            root,
            len(tree.files),
            kept,
            num,
            len(tree.folders),
            time.perf_counter() - begun,
        )
    if kept is not None and tree is not before:
        _keep(kept, root, tree)
    return tree.files


def _place(root: Path) -> Path | None:
    """Where the listing of a folder is kept; None for a user without a home."""
    try:
        folder = user_cache() / "listings"
    except OSError as error:
        logger.info("listings of folders are not kept: %s", error)
        return None
    name = hashlib.sha256(json.dumps(_about(root)).encode()).hexdigest()[:32]
    return folder / f"{name}.npz"


def _about(root: Path) -> dict[str, Any]:
    """What a listing depends on besides what the folder holds."""
    return {"format": _FORMAT, "suffixes": sorted(IMAGE_SUFFIXES), "folder": os.path.realpath(root)}


def _load(kept: Path, root: Path) -> Tree | None:
    """The listing in a file; None where there is none that can be used."""
    try:
        if not kept.is_file():
            return None
        with zipfile.ZipFile(kept) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} has another checksum")
        with np.load(kept, allow_pickle=False) as arrays:
            if json.loads(str(arrays["about"])) != _about(root):
                raise ValueError("it is of another folder")
            return _unpacked(arrays)
    except _UNUSABLE as error:
        logger.info("the listing %s cannot be used and is made anew: %s", kept, error)
        return None


def _unpacked(arrays: Any) -> Tree:
    names = {
        part: Names(arrays[part].tobytes(), arrays[f"{part}_ends"]) for part in ("files", "folders", "reals", "links")
    }
    stamps, states = arrays["stamps"], arrays["states"]
    num = len(names["folders"])
    if not num or stamps.shape != (num, 4) or states.shape != (num,) or len(names["reals"]) != num:
        raise ValueError("its parts are not of one length")
    return Tree(stamps=stamps, states=states, num_listed=0, **names)


def _keep(kept: Path, root: Path, tree: Tree) -> None:
    """Write a listing, or remove the one of before where none is worth it."""
    arrays: dict[str, Any] = {"about": np.array(json.dumps(_about(root))), "stamps": tree.stamps, "states": tree.states}
    for part in ("files", "folders", "reals", "links"):
        names: Names = getattr(tree, part)
        arrays |= {part: np.frombuffer(names.text, dtype=np.uint8), f"{part}_ends": names.ends}
    try:
        if len(tree.files) < LEAST_FILES or not (tree.states == LISTED).any():
            kept.unlink(missing_ok=True)
            return
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(kept) as part_path, part_path.open("wb") as file:
            np.savez(file, **arrays)
        _prune(kept.parent)
    except OSError as error:
        logger.info("the listing of %s is not kept: %s: %s", root, error.filename or kept, error.strerror or error)


def _prune(folder: Path) -> None:
    """Remove the oldest listings beyond so many, and what processes left that were killed while they wrote."""
    written = dict[Path, float]()
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removes as well
            written[path] = path.stat().st_mtime
    now = time.time()
    listings = sorted((path for path in written if path.suffix == ".npz"), key=written.__getitem__)
    parts = [path for path in written if path.suffix == ".part" and now - written[path] > _ABANDONED_S]
    for path in [*listings[:-MOST_LISTINGS], *parts]:
        path.unlink(missing_ok=True)
