"""DATA of any kind → all of its images in one list, with the part and the label of each."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchssl.data.cifar import is_cifar, open_cifar
from patchssl.data.images import FileSource, StoredSource
from patchssl.data.sources import open_unlabelled
from patchssl.data.tables import read_table
from patchssl.errors import DataError

WHOLE, ELSEWHERE = "all", "elsewhere"
NO_LABEL = -1
_SPLITS = ("train", "val", "test", "query", "gallery")
_TRAIN, _TESTS = "train", ("val", "test")


@dataclass(frozen=True, eq=False)
class Collection:
    """M images and what they are for.

    Attributes:
        source: all of them.
        parts: the names of the parts; ELSEWHERE is what lies outside of the parts that a layout has.
        part_of: (M,) int8, places in parts.
        classes: the names of the classes, sorted; none where there are no labels.
        labels: (M,) int64 places in classes, NO_LABEL for an image without.
    """

    source: StoredSource
    parts: tuple[str, ...]
    part_of: NDArray[np.int8]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def is_labelled(self) -> bool:
        """Whether any image has a label."""
        return bool(self.classes)

    @property
    def splits(self) -> tuple[int, ...]:
        """Those of the parts that must not share pictures, as places in parts."""
        return tuple(place for place, name in enumerate(self.parts) if name not in (WHOLE, ELSEWHERE))

    def part(self, index: int) -> str:
        """The name of an image's part."""
        return self.parts[int(self.part_of[index])]

    def label(self, index: int) -> str | None:
        """The name of an image's class, None where it has none."""
        label = int(self.labels[index])
        return None if label == NO_LABEL else self.classes[label]


def open_collection(data: str) -> Collection:
    """Open DATA as far as its layout tells: with parts and labels where it has them.

    A folder with `train/` and `val/` or `test/` has these as parts, and the first folder below is the class. A folder
    all of whose images lie in two folders or more has these as classes. A CIFAR folder has its training and its test
    part; a CSV file the parts and labels of its columns `split` and `label`, if it has these. Everything else is as
    `open_unlabelled` opens it.

    Args:
        data: as named on the command line, which may be no path.

    Raises:
        DataError: nothing there, or no image in it.
    """
    path = Path(data)
    if path.is_dir() and is_cifar(path):
        return _of_cifar(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _of_table(path)
    source = open_unlabelled(data)
    if path.is_dir() and isinstance(source, FileSource):
        return _of_folder(source)
    labels = _none(len(source)) if source.labels is None else source.labels
    return Collection(source, (WHOLE,), _one_part(len(source)), source.classes, labels)


def _of_cifar(folder: Path) -> Collection:
    train, test = open_cifar(folder, train=True), open_cifar(folder, train=False)
    assert train.labels is not None
    assert test.labels is not None
    labels = np.concatenate([train.labels, test.labels])
    both = replace(
        train, pixels=np.concatenate([train.pixels, test.pixels]), ids=(*train.ids, *test.ids), labels=labels
    )
    part_of = np.repeat(np.array([0, 1], np.int8), [len(train), len(test)])
    return Collection(both, ("train", "test"), part_of, train.classes, labels)


def _of_table(path: Path) -> Collection:
    """A row may stand in the file more than once; its image is then a duplicate like others."""
    rows = read_table(path, required=("path",))
    splits = [(row.get("split") or "").strip() or ELSEWHERE for row in rows]
    unknown = sorted(set(splits) - {*_SPLITS, ELSEWHERE})
    if unknown:
        raise DataError(f"{path}: split is {unknown[0]!r}; allowed: {', '.join(_SPLITS)}, or nothing")
    if set(splits) == {ELSEWHERE}:
        splits = [WHOLE] * len(rows)
    classes, labels = _numbered((row.get("label") or "").strip() or None for row in rows)
    source = FileSource(path.parent, tuple(row["path"] for row in rows), None, (), path.stem, str(path), True)
    return _with_parts(source, splits, (*_SPLITS, WHOLE, ELSEWHERE), classes, labels)


def _of_folder(source: FileSource) -> Collection:
    tops = {top for top, _ in _folders(source) if top}
    parts = [name for name in (_TRAIN, *_TESTS) if name in tops]
    if _TRAIN in parts and len(parts) > 1:
        placed = (top if top in parts else ELSEWHERE for top, _ in _folders(source))
        names = (below if top in parts else None for top, below in _folders(source))
        return _with_parts(source, placed, (*parts, ELSEWHERE), *_numbered(names))
    is_labelled = len(tops) > 1 and all(top for top, _ in _folders(source))
    classes, labels = _numbered(top if is_labelled else None for top, _ in _folders(source))
    return Collection(source, (WHOLE,), _one_part(len(source)), classes, labels)


def _folders(source: FileSource) -> Iterator[tuple[str | None, str | None]]:
    """The first folder of each image's path and the one below it, None where there is none."""
    for image in source.ids:
        top, _, rest = image.partition(os.sep)
        below, _, name = rest.partition(os.sep)
        yield top if rest else None, below if name else None


def _with_parts(
    source: StoredSource,
    placed: Iterable[str],
    order: Sequence[str],
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
) -> Collection:
    """Leave out the parts that have no images, and number the others in a given order."""
    number = {name: place for place, name in enumerate(order)}
    places = np.fromiter((number[name] for name in placed), np.int8, len(source))
    there, part_of = np.unique(places, return_inverse=True)
    return Collection(source, tuple(order[place] for place in there.tolist()), part_of.astype(np.int8), classes, labels)


def _numbered(names: Iterable[str | None]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The names in sorted order, and (M,) places among them."""
    number: dict[str, int] = {}
    labels = np.fromiter(
        (NO_LABEL if name is None else number.setdefault(name, len(number)) for name in names), np.int64
    )
    classes = sorted(number)
    place = np.empty(len(classes) + 1, np.int64)
    place[[number[name] for name in classes]] = np.arange(len(classes))
    place[NO_LABEL] = NO_LABEL  # the last one
    return tuple(classes), place[labels]


def _one_part(num: int) -> NDArray[np.int8]:
    return np.zeros(num, np.int8)


def _none(num: int) -> NDArray[np.int64]:
    return np.full(num, NO_LABEL, np.int64)
