"""Drawn images as files, in a folder that appears only when it is complete."""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from patchssl.data.synth.canvas import Pixels
from patchssl.errors import DataError

_PNG_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Drawing:
    """An image on its way to disk.

    Attributes:
        relative_path: where it goes; the suffix says the format.
        pixels: (H, W, 3) RGB.
        quality: JPEG quality, without effect on PNG.
    """

    relative_path: str
    pixels: Pixels
    quality: int = 0


def save(drawing: Drawing, folder: Path) -> None:
    """Write one image under a folder, as PNG (exact) or JPEG."""
    path = folder / drawing.relative_path
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(drawing.pixels)
    if path.suffix == ".png":
        image.save(path, compress_level=_PNG_LEVEL)
    else:
        image.save(path, quality=drawing.quality)


@contextmanager
def whole_folder(output: Path, *, replaceable: Collection[str] = ()) -> Iterator[Path]:
    """Give a temporary folder whose content becomes that of `output` when the block ends without an error.

    Args:
        output: a folder that does not exist or is empty. A new one appears complete, by one renaming; into one that
            exists, and may be a mount point or the current folder, the entries move when all are complete.
        replaceable: names of entries, files, that may be in it already and then give way.

    Raises:
        DataError: `output` is a file, or a folder with something else in it, or it cannot be written.
    """
    refuse_occupied(output, replaceable=replaceable)
    exists = output.is_dir()
    partial = output / f".partial-{os.getpid()}" if exists else output.parent / f".{output.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        yield partial
        if exists:
            for name in replaceable:
                (output / name).unlink(missing_ok=True)
            for entry in sorted(partial.iterdir()):
                entry.rename(output / entry.name)
        else:
            partial.rename(output)
    except OSError as error:
        raise DataError(
            f"Cannot write {output}: {error}. What was written of it is removed. "
            "Give a folder that can be written on a disk with enough space."
        ) from error
    finally:
        _remove(partial)


def refuse_occupied(output: Path, *, replaceable: Collection[str] = (), hint: str = "") -> None:
    """Raise DataError unless `output` is free to become a new folder.

    Args:
        output: the folder.
        replaceable: names of files that do not count.
        hint: what else to do, besides another folder.
    """
    if output.is_dir():
        others = [entry for entry in output.iterdir() if entry.name not in replaceable or entry.is_dir()]
        if others:
            told = f", such as {min(others).name!r}, that are no part of what is replaced" if replaceable else ""
            raise DataError(
                f"{output} already exists and holds {len(others)} entries{told}, which are left as they are. "
                f"Give a folder that is new or empty, or remove this one first{hint}."
            )
    elif output.exists() or output.is_symlink():
        raise DataError(f"{output} exists and is no folder. Give a folder that is new or empty.")


def _remove(folder: Path) -> None:
    """Remove a folder if it is there, even while other processes that an error has not yet ended write into it."""
    doomed = folder.with_name(f"{folder.name}-removed")
    try:
        # Under another name no file comes to it any more.
        folder.rename(doomed)
    except OSError:
        doomed = folder
    shutil.rmtree(doomed, ignore_errors=True)
