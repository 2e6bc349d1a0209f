"""The ground truth of revisited Oxford and Paris.

Radenović et al.: "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking", CVPR 2018. The file is a
dict: `imlist` and `qimlist` hold names of images without suffix, and `gnd` for each query its box `bbx` and the places
in `imlist` of its `easy`, `hard` and `junk` images; all others are negatives.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.data.boxed import Box
from patchssl.data.plain_pickle import load_plain_pickle
from patchssl.errors import DataError

logger = logging.getLogger(__name__)

SUFFIXES = (".pkl", ".json")
GRADES = ("easy", "hard", "junk")
_KEYS = ("imlist", "qimlist", "gnd")
_NUM_NAMED = 5


@dataclass(frozen=True, eq=False, slots=True)
class RevisitedTruth:
    """What shows the place of which query.

    Attributes:
        name: of the file, without `gnd_` and suffix.
        database: (M,) names of the database images, each once.
        queries: (Q,) names of the query images, each once.
        boxes: (Q,) left, top, right, bottom of the query's place in pixels of its image, or None.
        easy: for each query, ascending rows of the database that show its place well.
        hard: likewise, that show it badly.
        junk: likewise, that are neither right nor wrong, and count as if they were not there.
        num_own: queries that stand in the database under their own name, and are junk for themselves.
    """

    name: str
    database: tuple[str, ...]
    queries: tuple[str, ...]
    boxes: tuple[Box | None, ...]
    easy: tuple[NDArray[np.int64], ...]
    hard: tuple[NDArray[np.int64], ...]
    junk: tuple[NDArray[np.int64], ...]
    num_own: int

    def fingerprint(self) -> str:
        """Hash of all names and grades; two results are of one task only if it is equal."""
        grades = [[rows.tolist() for rows in getattr(self, grade)] for grade in GRADES]
        return hashlib.sha256(json.dumps([self.database, self.queries, grades]).encode()).hexdigest()


def load_truth(path: Path) -> RevisitedTruth:
    """Read a ground truth, `.pkl` or `.json`.

    A query that stands in the database too, by its name, would be found as itself: it is made junk for itself.

    Raises:
        DataError: the file cannot be read or is of another form; a name stands twice in a list; a place is none of
            the database, or stands twice for a query or in two of its grades; a box is none; or no query has an image
            to find.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is no ground truth; allowed: {' and '.join(SUFFIXES)}")
    content = load_plain_pickle(path) if path.suffix == ".pkl" else _json(path)
    if not isinstance(content, Mapping) or any(key not in content for key in _KEYS):
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise DataError(f"{path} must be a dict with {', '.join(_KEYS)}; it holds {found}")
    database, queries = (_names(path, content[key], key) for key in _KEYS[:2])
    gnd = content["gnd"]
    if not isinstance(gnd, Sequence) or len(gnd) != len(queries):
        told = f"{len(gnd)} entries" if isinstance(gnd, Sequence) else f"a {type(gnd).__name__}"
        raise DataError(
            f"{path}: gnd must be a list with an entry for each of the {len(queries)} queries; it is {told}"
        )
    entries = [
        _Entry(f"{path}: gnd[{number}] (query {name})", entry, len(database))
        for number, (name, entry) in enumerate(zip(queries, gnd, strict=True))
    ]
    grades = {grade: [entry.rows(grade) for entry in entries] for grade in GRADES}
    for number, entry in enumerate(entries):
        entry.check_once({grade: rows[number] for grade, rows in grades.items()}, database)
    num_own = _make_own_junk(path, database, queries, grades)
    if not any(map(len, grades["easy"] + grades["hard"])):
        raise DataError(f"{path}: no query has an easy or hard image; there is nothing to find")
    return RevisitedTruth(
        path.stem.removeprefix("gnd_"),
        database,
        queries,
        tuple(entry.box() for entry in entries),
        tuple(grades["easy"]),
        tuple(grades["hard"]),
        tuple(grades["junk"]),
        num_own,
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None


def _names(path: Path, value: Any, key: str) -> tuple[str, ...]:
    names = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path}: {key} must be a list of names, at least one")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: {len(twice)} names stand more than once in {key} ({_some(twice)}); keep one of each")
    return tuple(names)


def _make_own_junk(
    path: Path, database: Sequence[str], queries: Sequence[str], grades: Mapping[str, list[NDArray[np.int64]]]
) -> int:
    place = {name: row for row, name in enumerate(database)}
    own = {number: place[name] for number, name in enumerate(queries) if name in place}
    for number, row in own.items():
        for grade in GRADES[:2]:
            grades[grade][number] = np.setdiff1d(grades[grade][number], [row])
        grades["junk"][number] = np.union1d(grades["junk"][number], [row])
    if own:
        logger.warning(
            "%s: %d of %d queries stand in the database too (%s); each is junk for itself and never counts",
            path,
            len(own),
            len(queries),
            _some([queries[number] for number in own]),
        )
    return len(own)


class _Entry:
    """What `gnd` says of one query."""

    def __init__(self, place: str, entry: Any, num_images: int) -> None:
        if not isinstance(entry, Mapping) or any(grade not in entry for grade in GRADES):
            found = sorted(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
            old = "; `ok` is of Oxford and Paris before they were revisited" if "ok" in found else ""
            raise DataError(f"{place} must be a dict with {', '.join(GRADES)}; it holds {found}{old}")
        self.place, self.entry, self.num_images = place, entry, num_images

    def rows(self, grade: str) -> NDArray[np.int64]:
        rows = _array(self.entry[grade])
        if rows is None or rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise DataError(f"{self.place}: {grade} must be a list of whole numbers, places in imlist")
        outside = rows[(rows < 0) | (rows >= self.num_images)]
        if outside.size:
            raise DataError(
                f"{self.place}: {outside.size} places of {grade} ({_some(outside.tolist())}) are outside imlist; "
                f"allowed: 0 to {self.num_images - 1}"
            )
        return np.sort(rows.astype(np.int64))

    def check_once(self, grades: Mapping[str, NDArray[np.int64]], database: Sequence[str]) -> None:
        """Refuse an image that stands twice: in two grades it would be right and wrong, in one it would count twice."""
        rows, counts = np.unique(np.concatenate(list(grades.values())), return_counts=True)
        twice = rows[counts > 1].tolist()
        if twice:
            told = [f"{database[row]} in {' and '.join(_holding(grades, row))}" for row in twice]
            raise DataError(f"{self.place}: {len(twice)} images have more than one grade: {_some(told)}")

    def box(self) -> Box | None:
        if self.entry.get("bbx") is None:
            return None
        ends = _array(self.entry["bbx"])
        if ends is None or ends.shape != (4,) or ends.dtype.kind not in "iuf" or not np.isfinite(ends).all():
            raise DataError(f"{self.place}: bbx must be four numbers (left, top, right, bottom)")
        left, top, right, bottom = map(float, ends)
        if right <= left or bottom <= top:
            raise DataError(
                f"{self.place}: the box {ends.tolist()} is empty; right must be above left, bottom above top"
            )
        return left, top, right, bottom


def _array(value: Any) -> NDArray[Any] | None:
    """A list of numbers as an array, without taking true for 1."""
    if isinstance(value, list | tuple) and any(isinstance(item, bool | str | list | dict) for item in value):
        return None
    try:
        return np.asarray(value)
    except (ValueError, OverflowError):
        return None


def _holding(grades: Mapping[str, NDArray[np.int64]], row: int) -> list[str]:
    return [grade for grade, rows in grades.items() for held in rows.tolist() if held == row]


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:_NUM_NAMED])) + (", …" if len(values) > _NUM_NAMED else "")
