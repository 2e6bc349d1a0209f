"""CSV files that list images, and perhaps their labels and splits."""

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from patchssl.data.images import FileSource, ImageSource
from patchssl.errors import DataError

TRAIN_SPLITS = ("train",)
TEST_SPLITS = ("val", "test")
_NUM_NAMED = 5


def unlabelled_table(path: Path, *, apply_exif: bool) -> FileSource:
    """The images of a CSV file with a column `path`.

    Raises:
        DataError: the column is missing or empty somewhere, or there are no rows.
    """
    return _source(path, read_table(path, required=("path",)), labelled=False, apply_exif=apply_exif)


def read_table(
    path: Path, *, required: Sequence[str], allowed: Mapping[str, Sequence[str]] | None = None, hint: str = ""
) -> list[dict[str, str]]:
    """Read a CSV file with a header.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        required: columns that must be there and filled in every row.
        allowed: the values that a required column may have.
        hint: what to say besides where a column is missing.

    Raises:
        DataError: a required column is missing, or empty in some row, a value is not allowed, there are no rows, or
            it is no CSV in UTF-8.
    """
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            missing = [name for name in required if name not in columns]
            if missing:
                raise DataError(
                    f"{path} has the columns {', '.join(columns) or '(none)'}; needed, separated by commas: "
                    f"{', '.join(required)} (missing: {', '.join(missing)}){hint}"
                )
            for row in reader:
                _check_row(f"{path} line {reader.line_num}", row, required, allowed or {})
                rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}") from None
    if not rows:
        raise DataError(f"{path} has a header but no rows")
    return rows


def _check_row(
    place: str, row: Mapping[str, str | None], required: Sequence[str], allowed: Mapping[str, Sequence[str]]
) -> None:
    empty = [name for name in required if not (row[name] or "").strip()]
    if empty:
        raise DataError(f"{place}: {', '.join(empty)} is empty")
    for name, values in allowed.items():
        if row[name] not in values:
            raise DataError(f"{place}: {name} is {row[name]!r}; allowed: {', '.join(values)}")


def _source(
    path: Path, rows: list[dict[str, str]], *, labelled: bool, apply_exif: bool, classes: tuple[str, ...] = ()
) -> FileSource:
    """Paths in a CSV are relative to the file's folder, or absolute."""
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[row["label"]] for row in rows], dtype=np.int64) if labelled else None
    ids = tuple(row["path"] for row in rows)
    return FileSource(path.parent, ids, labels, classes, path.stem, str(path), apply_exif)


def labelled_table(path: Path, *, apply_exif: bool) -> dict[str, ImageSource]:
    """The "train" and "test" images of a CSV file with the columns path, label and split.

    Raises:
        DataError: a column is missing or empty somewhere, a split is unknown, or one has no rows, or an image stands in
            several rows.
    """
    rows = read_table(
        path,
        required=("path", "label", "split"),
        allowed={"split": TRAIN_SPLITS + TEST_SPLITS},
        hint="; images without splits are for eval knn --protocol leave-one-out",
    )
    check_repeats(path, rows)
    classes = tuple(sorted({row["label"] for row in rows}))
    parts: dict[str, ImageSource] = {}
    for part, splits in (("train", TRAIN_SPLITS), ("test", TEST_SPLITS)):
        chosen = [row for row in rows if row["split"] in splits]
        if not chosen:
            raise DataError(f"{path} has no row of the split {' or '.join(splits)}")
        parts[part] = _source(path, chosen, labelled=True, apply_exif=apply_exif, classes=classes)
    return parts


def classes_table(path: Path, *, apply_exif: bool) -> FileSource:
    """The images of a CSV file with the columns path and label, and without splits.

    Raises:
        DataError: a column is missing or empty somewhere, there is a column `split`, an image stands in several rows,
            or there is one class only.
    """
    rows = read_table(path, required=("path", "label"))
    if "split" in rows[0]:
        raise DataError(
            f"{path} has a column split; leave-one-out is for images without splits: leave the column out, or take "
            "--protocol dino"
        )
    check_repeats(path, rows)
    classes = tuple(sorted({row["label"] for row in rows}))
    if len(classes) < 2:
        raise DataError(f"{path} has one label only, {classes[0]}; at least two classes are needed")
    return _source(path, rows, labelled=True, apply_exif=apply_exif, classes=classes)


def check_repeats(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Refuse an image that stands in several rows.

    Raises:
        DataError: one does, however its path is written.
    """
    counts = Counter(os.path.normpath(row["path"]) for row in rows)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise DataError(
            f"{path}: {len(repeated)} images stand in more than one row ({', '.join(repeated[:_NUM_NAMED])}"
            f"{', …' if len(repeated) > _NUM_NAMED else ''}); an image has one label and is in one split, or it would "
            "be found again as itself: keep one row of each"
        )
