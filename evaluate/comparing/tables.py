"""Result rows → one table: models by columns, with marks for what is best and what cannot be told from it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.comparing.baselines import BASELINES, baselines_of
from patchssl.evaluate.comparing.columns import (
    FLOOR,
    MODEL,
    UNTRAINED,
    Column,
    columns_of,
    kind_of,
    labels_of,
    model_key,
    selected_by_test,
)
from patchssl.evaluate.comparing.comparison import compare_metric
from patchssl.evaluate.comparing.published import Published
from patchssl.evaluate.outcomes import Outcomes
from patchssl.evaluate.results import Row

logger = logging.getLogger(__name__)

HEADLINE, ALL = "headline", "all"
CHANCE = "chance"
KINDS = (MODEL, CHANCE, FLOOR, UNTRAINED)
BEST, NOT_SEPARABLE = "best", "not separable"

_DTYPES = {
    "kind": "string",
    "line": "Int64",
    "model": "string",
    "column": "Int64",
    "task": "string",
    "protocol": "string",
    "dataset": "string",
    "told_apart": "string",
    "metric": "string",
    "value": "Float64",
    "ci95_low": "Float64",
    "ci95_high": "Float64",
    "num": "Int64",
    "mark": "string",
    "paired": "boolean",
    "test_selected": "boolean",
    "row_id": "string",
    "comparability": "string",
    "num_params": "Int64",
    "gflops": "Float64",
    "images_per_s": "Float64",
}
Getter = Callable[[Row], Outcomes | None]
_Key = tuple[tuple[str, str], int]  # a model, and which of its rows in a column


@dataclass(frozen=True, slots=True)
class TableColumn:
    """One metric of rows that may stand in one column."""

    column: Column
    metric: str


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """Models by columns.

    Attributes:
        columns: in order.
        cells: one line per model or floor and column: kind (`model`, or the floors `chance`, `floor`, `untrained`),
            line and column (numbers, in order), model (its label), task, protocol, dataset, told_apart (what tells the
            column from others of its task and data set), metric, value and interval (fractions), num, mark (`best`,
            `not separable` or empty), paired (whether the mark was judged image by image; missing where there was
            nothing to judge), test_selected, row_id, comparability, num_params, gflops and images_per_s.
        cost: whether parameters, GFLOPs and images per second are to be shown.
        published: figures of others, which stand in no column.
        notes: sentences on what the table leaves out.
    """

    columns: tuple[TableColumn, ...]
    cells: pd.DataFrame
    cost: bool
    published: tuple[Published, ...]
    notes: tuple[str, ...]


def build_table(
    rows: Sequence[Row],
    *,
    outcomes: Getter | None = None,
    metric: str = HEADLINE,
    cost: bool = False,
    published: Sequence[Published] = (),
    seed: int = 0,
) -> Table:
    """Sort rows into columns of equal comparability and mark in each what is best.

    In a column the highest value of a model is marked as best, and every other model as not separable whose
    difference from the best a paired test over the test images cannot tell from 0. Where the outcomes of either are
    missing the two are not separable if their intervals overlap, which asks for more than a paired test. Floors
    (chance, models of the family `floor`, untrained twins) and values chosen by the test images get no mark.

    Args:
        rows: any; several of one model in one column get a line each (`columns.newest` leaves one).
        outcomes: gives what came of each image of a row, or None; asked at most once for a row.
        metric: `headline`, `all`, or a metric's name.
        cost: whether to show parameters, GFLOPs and images per second.
        published: figures to show besides.
        seed: of the bootstrap.

    Raises:
        ConfigError: no row has a metric of that name.
    """
    columns, notes = _choose_columns(columns_of(rows), metric)
    kept = _Once(outcomes or (lambda row: None))
    lines = _lines(rows, columns)
    records = [
        record
        for place, column in enumerate(columns)
        for record in (*_cells(column, place, lines, kept, seed), *_baselines(column, place, lines))
    ]
    cells = pd.DataFrame.from_records(records, columns=list(_DTYPES)).astype(_DTYPES)
    cells = cells.sort_values(["line", "column"], kind="stable", ignore_index=True)
    return Table(tuple(columns), cells, cost, tuple(published), tuple(notes))


class _Once:
    """Outcomes, read once; damaged ones are told and count as missing."""

    def __init__(self, get: Getter) -> None:
        self.get = get
        self.read: dict[str, Outcomes | None] = {}

    def __call__(self, row: Row) -> Outcomes | None:
        if row.id not in self.read:
            try:
                self.read[row.id] = self.get(row)
            except DataError as error:
                logger.warning("%s", error)
                self.read[row.id] = None
        return self.read[row.id]


def _choose_columns(found: Sequence[Column], metric: str) -> tuple[list[TableColumn], list[str]]:
    columns, notes = [], []
    for column in found:
        names = list(dict.fromkeys(name for row in column.rows for name in row.metrics))
        if metric == HEADLINE:
            chosen = frozenset(name for row in column.rows for name in selected_by_test(row))
            shown = [name for name in (column.rows[-1].headline, *names) if name not in chosen][:1]
            if not shown:
                notes.append(f"{column.name}: every metric was chosen by the test images; --metric all shows them.")
        else:
            shown = [name for name in names if metric in (ALL, name)]
        columns += [TableColumn(column, name) for name in shown]
    if found and not columns and metric not in (HEADLINE, ALL):
        there = sorted({name for column in found for row in column.rows for name in row.metrics})
        raise ConfigError(f"no row has the metric {metric!r}; they have: {', '.join(there)}")
    return columns, notes


@dataclass(frozen=True, slots=True)
class _Line:
    label: str
    kind: str


def _lines(rows: Sequence[Row], columns: Sequence[TableColumn]) -> dict[_Key, _Line]:
    """A line for each model, or for each of its rows where a column has several; floors last, in their order.

    Models come in the order of the rows, or by their values where there is a single column to order them by.
    """
    labels = labels_of(rows)
    most = dict.fromkeys(labels, 1)
    for shown in columns:
        for key in labels:
            most[key] = max(most[key], sum(model_key(row) == key for row in shown.column.rows))
    kinds = {model_key(row): kind_of(row) for row in rows}
    keys = [(key, repetition) for key in labels for repetition in range(most[key])]
    if len(columns) == 1:
        values = {key: row.metrics[columns[0].metric].value for key, row in _numbered(columns[0])}
        keys.sort(key=lambda key: -values.get(key, -1.0))
    keys.sort(key=lambda key: KINDS.index(kinds[key[0]]))
    return {
        (key, repetition): _Line(
            labels[key] + (f" (row {repetition + 1} of {most[key]})" if most[key] > 1 else ""), kinds[key]
        )
        for key, repetition in keys
    }


def _numbered(shown: TableColumn) -> list[tuple[_Key, Row]]:
    """The rows that have the column's metric, each with its model and how many of this model came before it."""
    seen: dict[tuple[str, str], int] = {}
    found = []
    for row in sorted(shown.column.rows, key=lambda row: row.created):
        key = model_key(row)
        seen[key] = seen.get(key, -1) + 1
        if shown.metric in row.metrics:
            found.append(((key, seen[key]), row))
    return found


def _cells(
    shown: TableColumn, place: int, lines: Mapping[_Key, _Line], outcomes: _Once, seed: int
) -> list[dict[str, Any]]:
    numbered = _numbered(shown)
    places = _places(lines)
    marks = _marks([row for _, row in numbered], shown.metric, outcomes, seed)
    records = []
    for (key, row), (mark, paired) in zip(numbered, marks, strict=True):
        metric = row.metrics[shown.metric]
        records.append(
            {
                **_about(shown, place),
                "kind": lines[key].kind,
                "line": places[key],
                "model": lines[key].label,
                "value": metric.value,
                "ci95_low": metric.ci95_low,
                "ci95_high": metric.ci95_high,
                "num": metric.num,
                "mark": mark,
                "paired": paired,
                "test_selected": shown.metric in selected_by_test(row),
                "row_id": row.id,
                "num_params": _number(row.model.get("num_params")),
                "gflops": _number(row.details.get("gflops")),
                "images_per_s": _number(row.details.get("images_per_s")),
            }
        )
    return records


def _number(value: Any) -> Any:
    """A number as it stands; None for whatever else a row may hold in its place."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _about(shown: TableColumn, place: int) -> dict[str, Any]:
    column = shown.column
    return {
        "column": place,
        "task": column.task,
        "protocol": column.protocol,
        "dataset": column.dataset,
        "told_apart": column.words,
        "metric": shown.metric,
        "comparability": column.comparability,
    }


def _marks(rows: Sequence[Row], name: str, outcomes: _Once, seed: int) -> list[tuple[str, bool | None]]:
    """For each row its mark, and whether it was compared with the best image by image."""
    ranked = [row for row in rows if kind_of(row) == MODEL and name not in selected_by_test(row)]
    if len(ranked) < 2:
        return [("", None) for _ in rows]
    best = max(ranked, key=lambda row: row.metrics[name].value)
    marks: list[tuple[str, bool | None]] = []
    for row in rows:
        if row is best:
            marks.append((BEST, None))
        elif any(row is one for one in ranked):
            difference = compare_metric(best, row, name, (outcomes(best), outcomes(row)), seed=seed)
            if difference.unpaired is None:
                separable = difference.separable
            else:
                separable = row.metrics[name].ci95_high < best.metrics[name].ci95_low
            marks.append(("" if separable else NOT_SEPARABLE, difference.unpaired is None))
        else:
            marks.append(("", None))
    return marks


def _places(lines: Mapping[_Key, _Line]) -> dict[_Key, int]:
    """The number of each line, with room for baselines between the models and the other floors."""
    return {key: place + (line.kind != MODEL) * len(BASELINES) for place, (key, line) in enumerate(lines.items())}


def _baselines(shown: TableColumn, place: int, lines: Mapping[_Key, _Line]) -> list[dict[str, Any]]:
    """What is reached without a network, between the models and the other floors."""
    first = sum(one.kind == MODEL for one in lines.values())
    order = list(BASELINES.values())
    return [
        {
            **_about(shown, place),
            "kind": CHANCE,
            "line": first + order.index(label),
            "model": label,
            "value": value,
            "mark": "",
        }
        for label, value in baselines_of(shown.column.rows, shown.metric).items()
    ]
