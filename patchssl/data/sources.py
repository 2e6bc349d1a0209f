"""DATA as named on the command line → lists of images."""

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from patchssl.data.cifar import is_cifar, open_cifar
from patchssl.data.decode import IMAGE_SUFFIXES
from patchssl.data.images import FileSource, ImageSource
from patchssl.data.tables import labelled_table, unlabelled_table
from patchssl.errors import DataError

logger = logging.getLogger(__name__)

TEST_FOLDERS = ("val", "test")


def open_unlabelled(path: str | os.PathLike[str], *, apply_exif: bool = True) -> ImageSource:
    """Open DATA of `pretrain` and `embed`: all images of a folder at any depth, a CIFAR folder's training part, a CSV.

    Raises:
        DataError: nothing there, or no image in it.
    """
    data = _existing(path)
    if data.is_file():
        return unlabelled_table(data, apply_exif=apply_exif)
    if is_cifar(data):
        return open_cifar(data, train=True)
    ids = tuple(_walk(data))
    if not ids:
        raise DataError(f"{data} holds no image files{_contents(data)}; suffixes read: {_suffixes()}")
    return FileSource(data, ids, None, (), data.resolve().name, str(path), apply_exif)


def open_labelled(path: str | os.PathLike[str], *, apply_exif: bool = True) -> dict[str, ImageSource]:
    """Open DATA of `eval knn` and `eval linear`.

    An image folder with `train/` and `val/` or `test/`, each with a folder per class; a CIFAR folder; a CSV with the
    columns path, label and split.

    Returns:
        "train" and "test"; both have the same classes, in sorted order.

    Raises:
        DataError: a part is missing or empty.
    """
    data = _existing(path)
    if data.is_file():
        return labelled_table(data, apply_exif=apply_exif)
    if is_cifar(data):
        return {"train": open_cifar(data, train=True), "test": open_cifar(data, train=False)}
    test = next((data / name for name in TEST_FOLDERS if (data / name).is_dir()), None)
    if test is None or not (data / "train").is_dir():
        found = ", ".join(sorted(entry.name for entry in data.iterdir())[:8]) or "nothing"
        raise DataError(f"{data} must hold train/ and val/ (or test/) with a folder per class; found: {found}")
    folders = {"train": data / "train", "test": test}
    ids = {part: tuple(_walk(folder)) for part, folder in folders.items()}
    for part, folder in folders.items():
        if not ids[part]:
            raise DataError(f"{folder} holds no image files{_contents(folder)}; suffixes read: {_suffixes()}")
        loose = [name for name in ids[part] if len(Path(name).parts) < 2]
        if loose:
            raise DataError(f"{folder}: {len(loose)} images lie outside a class folder, for instance {loose[0]}")
    classes = tuple(sorted({Path(name).parts[0] for names in ids.values() for name in names}))
    number = {name: index for index, name in enumerate(classes)}
    return {
        part: FileSource(
            folder,
            ids[part],
            np.array([number[Path(name).parts[0]] for name in ids[part]], dtype=np.int64),
            classes,
            data.resolve().name,
            str(path),
            apply_exif,
        )
        for part, folder in folders.items()
    }


def _existing(path: str | os.PathLike[str]) -> Path:
    data = Path(path)
    if not data.exists():
        raise DataError(f"{data} does not exist; give a folder of images, a CIFAR python folder or a CSV file")
    if data.is_file() and data.suffix.lower() != ".csv":
        raise DataError(f"{data} is a file but no .csv; give a folder of images, a CIFAR python folder or a CSV file")
    return data


def _walk(root: Path) -> list[str]:
    """Relative paths of all image files, sorted, hidden ones left out, links followed unless they lead back up."""
    found: list[str] = []
    above: dict[str, frozenset[str]] = {str(root): frozenset()}  # the real paths of the folders above a folder
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_not_listed):
        real = os.path.realpath(folder)
        path = above.pop(folder)
        if real in path:
            subfolders.clear()
            continue
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        above |= {os.path.join(folder, name): path | {real} for name in subfolders}  # noqa: PTH118 - as os.walk does
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else relative + os.sep
        found.extend(
            prefix + name
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
        )
    return sorted(found)


def _not_listed(error: OSError) -> None:
    logger.warning("folder left out: %s: %s", error.filename, error.strerror)


def _contents(folder: Path) -> str:
    """What a folder without images does hold."""
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    if not files:
        return " (it is empty)"
    hidden = [any(part.startswith(".") for part in file.parts) for file in files]
    counts = Counter(
        "hidden" if is_hidden else file.suffix or "without a suffix"
        for file, is_hidden in zip(files, hidden, strict=True)
    )
    return " (it holds " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common(5)) + ")"


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
