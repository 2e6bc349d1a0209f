"""Labelled images to search with and to search in, or one set in which each image is searched among the others."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patchssl.data.boxed import Box, BoxedSource
from patchssl.data.images import FileSource, ImageSource
from patchssl.data.sources import class_folders, open_classes
from patchssl.data.tables import check_repeats, read_table
from patchssl.errors import DataError

GALLERY, QUERIES, LABELLED = "gallery", "queries", "labelled"

_SPLITS = {GALLERY: "gallery", QUERIES: "query"}
_ENDS = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True, eq=False, slots=True)
class ClassRetrievalData:
    """Labelled images.

    Attributes:
        sources: "gallery" and "queries", which have the same classes; or "labelled" alone. An image that is in both has
            one id.
        truth: nothing, since the labels tell what is right.
    """

    sources: Mapping[str, ImageSource]
    truth: None = None


def open_query_gallery(path: str | os.PathLike[str], *, apply_exif: bool = False) -> ClassRetrievalData:
    """Open DATA of `eval retrieval --protocol class`.

    A folder with `query/` and `gallery/`, each with a folder per class; a folder with a folder per class; or a CSV with
    the columns path and label, perhaps split (query or gallery), and perhaps x1, y1, x2, y2, the box that is shown of
    an image.

    Raises:
        DataError: nothing there, or it is of another form.
    """
    data = Path(path)
    if data.suffix.lower() == ".csv" and data.is_file():
        return ClassRetrievalData(_table(data, apply_exif))
    folders = {part: name for part, name in _SPLITS.items() if (data / name).is_dir()}
    if len(folders) == 1:
        (found,) = folders.values()
        (other,) = set(_SPLITS.values()) - {found}
        raise DataError(f"{data} has {found}/ and no {other}/; needed are both, or neither")
    if folders:
        return ClassRetrievalData(class_folders(data, folders, apply_exif=apply_exif))
    advice = "lay them out as query/ and gallery/, or name them in a CSV file with the columns path, label and split"
    return ClassRetrievalData({LABELLED: open_classes(path, apply_exif=apply_exif, advice=advice)})


def _table(path: Path, apply_exif: bool) -> dict[str, ImageSource]:
    rows = read_table(path, required=("path", "label"))
    if "split" not in rows[0]:
        return {LABELLED: _source(path, rows, sorted({row["label"] for row in rows}), apply_exif)}
    rows = read_table(
        path,
        required=("path", "label", "split"),
        allowed={"split": tuple(_SPLITS.values())},
        hint="; without the column split each image is searched among all others",
    )
    classes = sorted({row["label"] for row in rows})
    parts: dict[str, ImageSource] = {}
    for part, split in _SPLITS.items():
        chosen = [row for row in rows if row["split"] == split]
        if not chosen:
            raise DataError(f"{path} has no row of the split {split}")
        parts[part] = _source(path, chosen, classes, apply_exif)
    return parts


def _source(path: Path, rows: Sequence[Mapping[str, str]], classes: Sequence[str], apply_exif: bool) -> ImageSource:
    check_repeats(path, rows)
    boxes = _boxes(path, rows)
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[row["label"]] for row in rows], dtype=np.int64)
    # One id for one image, however its path is written.
    ids = tuple(os.path.normpath(row["path"]) for row in rows)
    source = FileSource(path.parent, ids, labels, tuple(classes), path.stem, str(path), apply_exif)
    return source if all(box is None for box in boxes) else BoxedSource(source, boxes)


def _boxes(path: Path, rows: Sequence[Mapping[str, str | None]]) -> tuple[Box | None, ...]:
    present = [end for end in _ENDS if end in rows[0]]
    if present and len(present) < len(_ENDS):
        raise DataError(f"{path} has the columns {', '.join(present)} of a box; needed are {', '.join(_ENDS)}, or none")
    return tuple(_box(path, row) for row in rows) if present else (None,) * len(rows)


def _box(path: Path, row: Mapping[str, str | None]) -> Box | None:
    texts = [(row[end] or "").strip() for end in _ENDS]
    if not any(texts):
        return None
    try:
        left, top, right, bottom = map(float, texts)
    except ValueError:
        left, top, right, bottom = (math.nan,) * 4
    if not all(map(math.isfinite, (left, top, right, bottom))) or right <= left or bottom <= top:
        raise DataError(
            f"{path}: the box of {row['path']} is {', '.join(text or 'empty' for text in texts)}; allowed: four "
            "numbers of pixels, x2 above x1 and y2 above y1, or all four empty for the whole image"
        )
    return left, top, right, bottom
