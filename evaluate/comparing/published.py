"""Figures that others published: read to stand beside rows of ours, never among them."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from importlib import resources
from typing import TextIO

from patchssl.errors import DataError

TASKS = ("knn", "linear", "copydetect", "retrieval")
_NAME = "results/published.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A figure with its source. Image sizes, training data and selection rules differ from figure to figure.

    Attributes:
        task: `knn`, `linear`, `copydetect` or `retrieval`.
        protocol: whose evaluation it is.
        dataset: the name of the benchmark.
        metric: named as in result rows where it means the same.
        model: in words.
        value: a fraction in [0, 1].
        source: paper and table, or README.
        note: what else is needed to understand the number, such as how it was selected.
        verified: whether it was read in its source.
    """

    task: str
    protocol: str
    dataset: str
    metric: str
    model: str
    value: float
    source: str
    note: str
    verified: bool


def read_published() -> tuple[Published, ...]:
    """The figures that come with the package.

    Raises:
        DataError: a line is not as it should be.
    """
    path = resources.files("patchssl.results") / "published.csv"
    return parse_published(io.StringIO(path.read_text(encoding="utf-8")))


def parse_published(file: TextIO) -> tuple[Published, ...]:
    """Read figures from CSV.

    Raises:
        DataError: other columns, an empty field other than the note, an unknown task, a value that is no fraction, or
            a line that says the same as another.
    """
    names = [field.name for field in fields(Published)]
    reader = csv.DictReader(file, strict=True)
    if reader.fieldnames != names:
        raise DataError(f"{_NAME} has the columns {reader.fieldnames}; needed: {', '.join(names)}")
    figures: dict[tuple[object, ...], Published] = {}
    try:
        for record in reader:
            figure = _parse(record)
            key = tuple(value for name, value in record.items() if name not in ("value", "verified"))
            if key in figures:
                raise DataError("says the same as a line before it")
            figures[key] = figure
    except (DataError, csv.Error) as error:
        raise DataError(f"{_NAME}:{reader.line_num}: {error}") from None
    return tuple(figures.values())


def _parse(record: dict[str, str]) -> Published:
    if None in record or None in record.values():
        raise DataError("has more or fewer fields than the header")
    empty = [name for name, text in record.items() if not text.strip() and name != "note"]
    if empty:
        raise DataError(f"has no {', '.join(empty)}")
    if record["task"] not in TASKS:
        raise DataError(f"has the task {record['task']!r}; allowed: {', '.join(TASKS)}")
    if record["verified"] not in ("true", "false"):
        raise DataError(f"has {record['verified']!r} as verified; allowed: true, false")
    try:
        value = float(record["value"])
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise DataError(f"has the value {record['value']!r}; needed: a fraction from 0 to 1")
    texts = {name: text for name, text in record.items() if name not in ("value", "verified")}
    return Published(**texts, value=value, verified=record["verified"] == "true")


def matching(
    figures: Iterable[Published], *, tasks: Iterable[str] = (), datasets: Iterable[str] = (), metric: str | None = None
) -> tuple[Published, ...]:
    """Those of the given tasks, data sets and metric; each left empty lets all pass.

    Tasks and data sets may be patterns such as `cifar*`. Names of data sets are compared without regard to case and
    punctuation: `ImageNet-1K` is `imagenet1k`. A metric finds those of any number of neighbours: `top1` also
    `top1@k20`, and the other way round.
    """
    tasks, plain = list(tasks), [_plain(name) for name in datasets]
    return tuple(
        figure
        for figure in figures
        if (not tasks or any(fnmatchcase(figure.task, task) for task in tasks))
        and (not plain or any(fnmatchcase(_plain(figure.dataset), name) for name in plain))
        and (metric is None or _base(metric) == _base(figure.metric))
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum() or letter in "*?")


def _base(metric: str) -> str:
    return metric.partition("@k")[0]
