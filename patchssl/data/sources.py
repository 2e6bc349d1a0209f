"""DATA as named on the command line → lists of images."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from patchssl.data.cifar import is_cifar, open_cifar
from patchssl.data.decode import IMAGE_SUFFIXES
from patchssl.data.images import FileSource, ImageSource, StoredSource
from patchssl.data.listing_cache import image_files
from patchssl.data.shards.finding import SUFFIXES, check_not_mixed, named_shards, refuse_compressed, shards_below
from patchssl.data.shards.opening import open_shards
from patchssl.data.shards.parquet_source import ParquetSource
from patchssl.data.shards.storage import on_this_machine, shown
from patchssl.data.tables import classes_table, labelled_table, unlabelled_table
from patchssl.errors import ConfigError, DataError
from patchssl.names import Names

TEST_FOLDERS = ("val", "test")


def open_unlabelled(
    path: str | os.PathLike[str], *, apply_exif: bool = True, image_column: str | None = None
) -> StoredSource:
    """Open DATA of `pretrain` and `embed`.

    All images of a folder at any depth, a CIFAR folder's training part, a CSV; or shards, tar or parquet: a file, a
    folder of them, a pattern, or a URL that fsspec knows.

    Args:
        path: the folder, file, pattern or URL.
        apply_exif: turn pictures upright.
        image_column: of parquet files; None: the one that holds images.

    Raises:
        DataError: nothing there, or no image in it.
        ConfigError: a column is given, and it is no parquet; or a package is needed that is not installed.
    """
    source = _open_unlabelled(os.fspath(path), apply_exif, image_column)
    if image_column is not None and not isinstance(source, ParquetSource):
        raise ConfigError(
            f"data.image_column is {image_column!r}, and {path} holds no parquet files, which alone have columns; "
            "leave one of both out"
        )
    return source


def _open_unlabelled(path: str, apply_exif: bool, image_column: str | None) -> StoredSource:
    place = on_this_machine(path)
    shards, name = named_shards(place), None
    if shards is None:
        data = _existing(place, ", .tar or .parquet files")
        if data.is_file():
            return unlabelled_table(data, apply_exif=apply_exif)
        if is_cifar(data):
            return open_cifar(data, train=True)
        ids = image_files(data)
        check_not_mixed(data, len(ids))
        if ids:
            return FileSource(data, ids, None, (), _name_of(data), path, apply_exif)
        shards, name = shards_below(data), _name_of(data)
        if not shards:
            raise DataError(
                f"{data} holds no image files{_contents(data)}; suffixes read: {_suffixes()}, and of shards "
                f"{' '.join(SUFFIXES)}"
            )
    return open_shards(shards, name=name, location=shown(path), apply_exif=apply_exif, image_column=image_column)


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
    test = _test_folder(data)
    if test is None or not (data / "train").is_dir():
        raise DataError(
            f"{data} must hold train/ and val/ (or test/) with a folder per class; found: {_entries(data)}. Class "
            "folders without such parts are for eval knn --protocol leave-one-out. Official data: "
            "https://www.cs.toronto.edu/~kriz/cifar.html (CIFAR, the python version as it is), https://image-net.org"
        )
    folders = {"train": data / "train", "test": test}
    ids = {part: _in_class_folders(folder) for part, folder in folders.items()}
    classes = tuple(sorted({_class_of(name) for names in ids.values() for name in names}))
    return {
        part: _by_class(folder, ids[part], classes, data, str(path), apply_exif=apply_exif)
        for part, folder in folders.items()
    }


def open_classes(
    path: str | os.PathLike[str], *, apply_exif: bool = True, advice: str = "take --protocol dino"
) -> ImageSource:
    """Open DATA of `eval knn --protocol leave-one-out`: labelled images without parts for training and testing.

    An image folder with a folder per class, or a CSV with the columns path and label.

    Args:
        path: the folder or file.
        apply_exif: turn pictures upright.
        advice: what to do with data that have such parts.

    Raises:
        DataError: nothing there, images outside class folders, one class only, or data that have such parts: which of
            their images were meant cannot be told.
    """
    data = _existing(path)
    if data.is_file():
        return classes_table(data, apply_exif=apply_exif)
    if is_cifar(data):
        raise DataError(f"{data} has a training and a test part; leave-one-out is for data without: {advice}")
    test = _test_folder(data)
    if test is not None and (data / "train").is_dir():
        raise DataError(
            f"{data} has train/ and {test.name}/; leave-one-out is for class folders without such parts: give "
            f"{data / 'train'} or {test}, or {advice}"
        )
    ids = _in_class_folders(data)
    classes = tuple(sorted({_class_of(name) for name in ids}))
    if len(classes) < 2:
        raise DataError(f"{data} must hold a folder per class, at least two with images; found: {_entries(data)}")
    return _by_class(data, ids, classes, data, str(path), apply_exif=apply_exif)


def class_folders(data: Path, folders: Mapping[str, str], *, apply_exif: bool) -> dict[str, ImageSource]:
    """Labelled images in several folders side by side, each with a folder per class.

    Args:
        data: where the folders lie.
        folders: part → name of its folder. Ids begin with it, since images of one name in two folders differ.
        apply_exif: turn pictures upright.

    Returns:
        The parts; all have the same classes, in sorted order.

    Raises:
        DataError: a folder holds no images, or some outside class folders.
    """
    ids = {part: _in_class_folders(data / name) for part, name in folders.items()}
    classes = tuple(sorted({_class_of(name) for names in ids.values() for name in names}))
    number = {name: index for index, name in enumerate(classes)}
    parts: dict[str, ImageSource] = {}
    for part, names in ids.items():
        labels = np.array([number[_class_of(name)] for name in names], dtype=np.int64)
        inside = Names.of(os.path.join(folders[part], name) for name in names)  # noqa: PTH118 - ids are text
        parts[part] = FileSource(data, inside, labels, classes, data.resolve().name, str(data), apply_exif)
    return parts


def _name_of(data: Path) -> str:
    """The folder's name, behind that of the data set if it is a part of one: cifar10-val for cifar10/val."""
    folder = data.resolve()
    is_part = folder.name in ("train", *TEST_FOLDERS) and folder.parent.name
    return f"{folder.parent.name}-{folder.name}" if is_part else folder.name


def _test_folder(data: Path) -> Path | None:
    return next((data / name for name in TEST_FOLDERS if (data / name).is_dir()), None)


def _entries(folder: Path) -> str:
    """What a folder holds, in short."""
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"


def _in_class_folders(folder: Path) -> Names:
    """Relative paths of all image files, each of which lies in a folder that names its class."""
    ids = image_files(folder)
    if not ids:
        raise DataError(f"{folder} holds no image files{_contents(folder)}; suffixes read: {_suffixes()}")
    loose = [name for name in ids if os.sep not in name]
    if loose:
        raise DataError(f"{folder}: {len(loose)} images lie outside a class folder, for instance {loose[0]}")
    return ids


def _by_class(
    folder: Path, ids: Names, classes: tuple[str, ...], data: Path, location: str, *, apply_exif: bool
) -> FileSource:
    """Images whose class is the first folder of their path."""
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[_class_of(name)] for name in ids], dtype=np.int64)
    return FileSource(folder, ids, labels, classes, _name_of(data), location, apply_exif)


def _class_of(name: str) -> str:
    """The first folder of a relative path."""
    return name.partition(os.sep)[0]


def _existing(path: str | os.PathLike[str], besides: str = "") -> Path:
    data = Path(path)
    allowed = f"give a folder of images, a CIFAR python folder{besides} or a CSV file"
    if not os.path.exists(data):  # noqa: PTH110 - of a name that no file can have it says no
        raise DataError(f"{data} does not exist; {allowed}")
    if data.is_file() and data.suffix.lower() != ".csv":
        refuse_compressed([str(data)])
        raise DataError(f"{data} is a file but no .csv; {allowed}")
    return data


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
