"""A table of models by columns as cells of text, the same for every format that people read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchssl.evaluate.comparing.tables import Table

SIGNS = {"best": "*", "not separable": "="}
UNPAIRED_SIGN, SELECTED_SIGN = "~", "†"
FLOORS = "floors, not ranked:"


@dataclass(frozen=True, slots=True)
class Cell:
    """A value in percent.

    Attributes:
        value: such as `53.88`.
        interval: such as `52.90 to 54.79`, or empty.
        sign: of its mark, or empty.
        bold: whether it is the best, or cannot be told from it.
    """

    value: str
    interval: str = ""
    sign: str = ""
    bold: bool = False

    def __str__(self) -> str:
        return self.value + (f" ({self.interval})" if self.interval else "")


@dataclass(frozen=True, slots=True)
class Grid:
    """Header, models and floors.

    Attributes:
        header: for each column its lines of words.
        cost: the names of the columns between the models and the first column.
        models: label, cost and cells of each.
        floors: the same of each floor.
        legend: sentences that explain the signs that occur, and what is left out.
    """

    header: tuple[tuple[str, ...], ...]
    cost: tuple[str, ...]
    models: tuple["Line", ...]
    floors: tuple["Line", ...]
    legend: tuple[str, ...]

    @property
    def body(self) -> tuple["Line", ...]:
        """The models, and under a line of words the floors."""
        between = Line(FLOORS, ("",) * len(self.cost), (None,) * len(self.header))
        return (*self.models, between, *self.floors) if self.floors else self.models


@dataclass(frozen=True, slots=True)
class Line:
    """A model or floor: its label, its cost as text, and a cell or None for every column."""

    label: str
    cost: tuple[str, ...]
    cells: tuple[Cell | None, ...]


def grid_of(table: "Table") -> Grid:
    """Lay a table out."""
    from patchssl.evaluate.comparing.columns import MODEL

    records = [{str(name): value for name, value in record.items()} for record in table.cells.to_dict("records")]
    lines: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        lines.setdefault(record["line"], []).append(record)
    cost = _shown_costs(records) if table.cost else ()
    models: list[Line] = []
    floors: list[Line] = []
    for line in lines.values():
        cells = {record["column"]: _cell(record) for record in line}
        laid = Line(
            line[0]["model"],
            tuple(_COSTS[name](_present(line, _FIELDS[name])) for name in cost),
            tuple(cells.get(place) for place in range(len(table.columns))),
        )
        (models if line[0]["kind"] == MODEL else floors).append(laid)
    header = tuple(
        (
            f"{shown.column.task} ({shown.column.protocol})",
            shown.column.dataset,
            *(f"{name} {value}".strip() for name, value in shown.column.told_apart.items()),
            shown.metric,
        )
        for shown in table.columns
    )
    return Grid(header, cost, tuple(models), tuple(floors), (*_legend(records), *table.notes))


def _present(records: Iterable[dict[str, Any]], name: str) -> list[float]:
    """The distinct values of a field, ascending, without missing ones."""
    import pandas as pd

    return sorted({record[name] for record in records if not pd.isna(record[name])})


def _shown_costs(records: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(name for name, field in _FIELDS.items() if _present(records, field))


def _range(values: list[float], pattern: str) -> str:
    return " to ".join(dict.fromkeys(pattern.format(value) for value in values[:1] + values[1:][-1:]))


_FIELDS = {"parameters": "num_params", "GFLOPs": "gflops", "images/s": "images_per_s"}
_COSTS = {
    "parameters": lambda values: _range([value / 1e6 for value in values], "{:.1f} M"),
    "GFLOPs": lambda values: _range(values, "{:.2f}"),
    "images/s": lambda values: _range(values, "{:,.0f}"),
}


def _cell(record: dict[str, Any]) -> Cell:
    import pandas as pd

    value = f"{100 * record['value']:.2f}"
    if pd.isna(record["ci95_low"]):
        return Cell(value)
    interval = f"{100 * record['ci95_low']:.2f} to {100 * record['ci95_high']:.2f}"
    mark = SIGNS.get(record["mark"], "")
    if record["mark"] == "not separable" and not record["paired"]:
        mark = UNPAIRED_SIGN
    return Cell(value, interval, mark + (SELECTED_SIGN if record["test_selected"] else ""), bold=bool(mark))


def _legend(records: list[dict[str, Any]]) -> list[str]:
    """Sentences for what occurs among the cells."""
    import pandas as pd

    marks = {(record["mark"], None if pd.isna(record["paired"]) else bool(record["paired"])) for record in records}
    said = ["Percent, with 95 % bootstrap intervals over the test images."] if records else []
    if ("best", None) in marks:
        said.append("* best of the column.")
    if ("not separable", True) in marks:
        said.append("= not separable from the best by a paired test over the test images.")
    if ("not separable", False) in marks:
        said.append("~ not separable from the best, unpaired: their intervals overlap.")
    unpaired = list(dict.fromkeys(record["model"] for record in records if record["paired"] is False))
    if unpaired:
        said.append(
            f"Unpaired, because outcomes of each image are missing: {', '.join(unpaired)}; judged by whether intervals "
            "overlap, which takes a larger difference than a paired test."
        )
    if any(record["test_selected"] is True for record in records):
        said.append("† chosen by the test images, too high as a rule, and not ranked.")
    return said
