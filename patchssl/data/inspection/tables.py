"""Tables of what was found, as CSV files that hold any file name."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from patchssl.data.inspection.collection import Collection
from patchssl.data.inspection.duplicates import Duplicates, agree, labels_agree
from patchssl.data.inspection.facts import EVEN, VARIED, Facts
from patchssl.data.inspection.leakage import Leakage
from patchssl.data.inspection.near import NearPairs

UNREADABLE, DUPLICATES, NEAR, LEAKAGE, ONE_COLOUR = (
    "unreadable.csv",
    "duplicates.csv",
    "near_duplicates.csv",
    "leakage.csv",
    "one_colour.csv",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_PAIR = ("cosine", "image", "part", "label", "other", "other_part", "other_label", "labels_agree")
_YES = {True: "yes", False: "no"}


def write_unreadable(folder: Path, collection: Collection, facts: Facts) -> None:
    """Write every image that cannot be read, and why."""
    rows = ((*_about(collection, index), _text(reason)) for index, reason in facts.reasons.items())
    _write(folder / UNREADABLE, ("image", "part", "label", "reason"), rows)


def write_one_colour(folder: Path, collection: Collection, facts: Facts) -> None:
    """Write the images that show one colour, or nearly."""
    evenness = facts.table["evenness"]
    rows = (
        (*_about(collection, index), "one colour" if evenness[index] == EVEN else "nearly one colour")
        for index in facts.readable[evenness[facts.readable] != VARIED].tolist()
    )
    _write(folder / ONE_COLOUR, ("image", "part", "label", "shows"), rows)


def write_duplicates(folder: Path, collection: Collection, facts: Facts, duplicates: Duplicates) -> None:
    """Write the groups of equal pictures; images of a group with the same number under `file` have the same bytes."""
    columns = ("group", "file", "image", "part", "label", "labels_agree", "format", "width", "height", "num_bytes")

    def rows() -> Iterator[tuple[object, ...]]:
        for group, members in enumerate(duplicates.pictures, start=1):
            files: dict[int, int] = {}
            agreement = _YES[agree(collection.labels[members])] if collection.is_labelled else ""
            for index in members.tolist():
                file = files.setdefault(int(duplicates.first_file[index]), len(files) + 1)
                row = facts.table[index]
                size = int(row["width"]), int(row["height"]), int(row["num_bytes"])
                yield group, file, *_about(collection, index), agreement, row["format"].decode(), *size

    _write(folder / DUPLICATES, columns, rows())


def write_near(folder: Path, collection: Collection, near: NearPairs) -> None:
    """Write the pairs of pictures that are nearly equal."""
    pairs = zip(near.cosines.tolist(), near.one.tolist(), near.other.tolist(), strict=True)
    _write(folder / NEAR, _PAIR, (_pair(collection, *pair) for pair in pairs))


def write_leakage(folder: Path, collection: Collection, leakage: Leakage) -> None:
    """Write what parts share."""
    rows = ((leak.kind, *_pair(collection, leak.cosine, leak.one, leak.other)) for leak in leakage.leaks)
    _write(folder / LEAKAGE, ("kind", *_PAIR), rows)


def _pair(collection: Collection, cosine: float | None, one: int, other: int) -> tuple[object, ...]:
    rounded = "" if cosine is None else round(cosine, 6)
    agreement = labels_agree(collection, one, other)
    return rounded, *_about(collection, one), *_about(collection, other), agreement


def _about(collection: Collection, index: int) -> tuple[str, str, str]:
    """Name, part and label of an image."""
    return path_text(collection.source.ids[index]), collection.part(index), _text(collection.label(index) or "")


def path_text(path: str) -> str:
    """A name that no spreadsheet takes for a formula, and that names the same file: `./=1.jpg` for `=1.jpg`."""
    return f"./{path}" if path.startswith(_FORMULA) else path


def _text(text: str) -> str:
    """The same for what is no path, with the apostrophe by which spreadsheets mark text."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    # File names may hold bytes that are no UTF-8; they come back as they were by the same rule. Text is quoted always,
    # since a carriage return would else end a line.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(columns)
        writer.writerows(rows)
