"""Tables of many models on stdout: for people, for papers and for scripts."""

import csv
import io
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from patchssl.cli.grids import FLOORS, Cell, Grid, grid_of
from patchssl.cli.latex import latex
from patchssl.cli.text_tables import aligned, markdown

if TYPE_CHECKING:
    from patchssl.evaluate.comparing.published import Published
    from patchssl.evaluate.comparing.tables import Table

_PLACES = ("line", "column")
_COSTS = ("num_params", "gflops", "images_per_s")
_OF_PUBLISHED = ("source", "note", "verified")
_SIGN_ROOM = " " * 3  # behind every number, so that numbers stand below each other
_PUBLISHED_TITLE = "Published by others, by protocols, images and selection rules of their own; not ranked:"


def print_table(table: "Table", output_format: str) -> None:
    """Print a table.

    Args:
        table: of `patchssl.evaluate.comparing.tables.build_table`.
        output_format: `table`, `markdown` and `latex` show percent, signs and a legend; `json`, a list of records, and
            `csv` hold fractions, one record for each model and column, and for each published figure.
    """
    if output_format == "json":
        click.echo(json.dumps(records_of(table), indent=2))
    elif output_format == "csv":
        click.echo(_csv(table), nl=False)
    else:
        render = {"table": _plain, "markdown": _markdown, "latex": latex}[output_format]
        parts = [render(grid_of(table))] if table.columns or table.notes else []
        parts += [_published(table.published, output_format)] if table.published else []
        click.echo("\n\n".join(parts))


def records_of(table: "Table") -> list[dict[str, Any]]:
    """One record for each model and column, then for each published figure; what is missing is None."""
    import pandas as pd

    dropped = [*_PLACES, *(() if table.cost else _COSTS)]
    cells = table.cells.drop(columns=dropped).to_dict("records")
    more = dict.fromkeys(_OF_PUBLISHED) if table.published else {}
    records = [
        {**{str(name): None if pd.isna(value) else value for name, value in cell.items()}, **more} for cell in cells
    ]
    names = [*(str(name) for name in table.cells.columns if name not in dropped), *more]
    for figure in table.published:
        records.append({**dict.fromkeys(names), "kind": "published", **asdict(figure)})
    return records


def _csv(table: "Table") -> str:
    buffer = io.StringIO()
    records = records_of(table)
    names = list(records[0]) if records else [name for name in table.cells.columns if name not in _PLACES]
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def _plain(grid: Grid) -> str:
    """Blocks of as many columns as a terminal is wide; one block where stdout is none."""
    parts = [_block(grid, places) for places in _fitting(grid)] if grid.header else []
    return "\n\n".join([*parts, "\n".join(grid.legend)])


def _fitting(grid: Grid) -> list[range]:
    """The columns, parted where the terminal ends."""
    room = _room()
    blocks, start = [], 0
    for place in range(1, len(grid.header)):
        lines = click.unstyle(_block(grid, range(start, place + 1))).splitlines()
        if room is not None and max(map(len, lines)) > room:
            blocks.append(range(start, place))
            start = place
    return [*blocks, range(start, len(grid.header))]


def _room() -> int | None:
    """How wide the terminal is; None where stdout is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _block(grid: Grid, places: range) -> str:
    """Some of the columns: their words above each other, the models, and the floors after an empty line."""
    height = max(len(grid.header[place]) for place in places)
    columns = [("",) * (height - len(grid.header[place])) + grid.header[place] for place in places]
    above = ["", *("" for _ in grid.cost)]
    cells = [[*above, *(column[line] + _SIGN_ROOM for column in columns)] for line in range(height)]
    cells[-1][: len(above)] = ["model", *grid.cost]
    bold = set()
    for line in grid.body:
        if line.label == FLOORS and grid.models:
            cells.append([""] * len(cells[0]))
        shown = [line.cells[place] for place in places]
        bold |= {(len(cells), len(above) + at) for at, cell in enumerate(shown) if cell and cell.bold}
        cells.append([line.label, *line.cost, *("" if cell is None else f"{cell} {cell.sign:2}" for cell in shown)])
    return aligned(cells, num_left=1, bold=bold)


def _markdown(grid: Grid) -> str:
    cells = [["model", *grid.cost, *("<br>".join(words) for words in grid.header)]]
    cells += [[line.label, *line.cost, *map(_marked_down, line.cells)] for line in grid.body]
    return "\n\n".join([markdown(cells, num_left=1), "\\\n".join(_escaped(said) for said in grid.legend)])


def _marked_down(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value = f"**{cell.value}**" if cell.bold else cell.value
    return " ".join(filter(None, (value, cell.interval and f"({cell.interval})", _escaped(cell.sign))))


def _escaped(text: str) -> str:
    return text.replace("*", "\\*").replace("~", "\\~")


def _published(figures: Sequence["Published"], output_format: str) -> str:
    cells = [["model", "task", "dataset", "metric", "percent", "protocol", "source", "note"]]
    for figure in figures:
        note = figure.note if figure.verified else "; ".join(filter(None, ("not verified in its source", figure.note)))
        value = (
            f"{100 * figure.value:.1f}" if round(1000 * figure.value, 6).is_integer() else f"{100 * figure.value:.2f}"
        )
        about = [figure.model, figure.task, figure.dataset, figure.metric]
        cells.append([*about, value, figure.protocol, figure.source, note])
    if output_format == "latex":
        from patchssl.cli.latex import tabular

        return f"\\par\\noindent {_PUBLISHED_TITLE}\n\n" + tabular(cells, "llllrlll")
    render = aligned if output_format == "table" else markdown
    return f"{_PUBLISHED_TITLE}\n\n" + render(cells, num_left=len(cells[0]))
