"""Result rows on stdout: as a table for people, or as JSON, CSV or Markdown."""

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from patchssl.cli.text_tables import aligned, markdown

if TYPE_CHECKING:
    from patchssl.evaluate.results import Metric, Row

_CSV_COLUMNS = ("task", "protocol", "dataset", "model", "metric", "value", "ci95_low", "ci95_high", "num")


def print_row(row: "Row", output_format: str) -> None:
    """Print one row; as JSON it is one object."""
    if output_format == "json":
        click.echo(row.to_json(indent=2))
    else:
        print_rows([row], output_format)


def print_rows(rows: Sequence["Row"], output_format: str) -> None:
    """Print rows.

    Args:
        rows: any number.
        output_format: `table` and `markdown` show percent, a table for all rows of equal comparability; `json`, a
            list, and `csv`, a line for each metric, hold fractions.
    """
    if output_format == "json":
        click.echo(json.dumps([json.loads(row.to_json()) for row in rows], indent=2))
    elif output_format == "csv":
        click.echo(_csv(rows), nl=False)
    else:
        render = aligned if output_format == "table" else markdown
        click.echo("\n\n".join(f"{_title(group)}\n\n{render(_cells(group))}" for group in _tables(rows)))


def _tables(rows: Sequence["Row"]) -> list[list["Row"]]:
    """Rows that may stand in one table, in the order in which they came: those of equal comparability."""
    tables: dict[str, list[Row]] = {}
    for row in rows:
        tables.setdefault(row.comparability, []).append(row)
    return list(tables.values())


def _title(rows: Sequence["Row"]) -> str:
    row = rows[0]
    sizes = ", ".join(f"{size:,} {name}" for name, size in row.dataset["splits"].items())
    of = f" of {row.model['spec']}" if len(rows) == 1 else ""
    return f"{row.task} ({row.protocol}){of} on {row.dataset['name']} ({sizes} images), percent"


def _cells(rows: Sequence["Row"]) -> list[list[str]]:
    """Header and lines, with a column for the model where there are several rows.

    Metrics `NAME@kK` share the line of their k; others have a line each.
    """
    models = [[row.model["spec"]] if len(rows) > 1 else [] for row in rows]
    model_header = ["model"] if len(rows) > 1 else []
    metrics = rows[0].metrics
    if all("@k" in name for name in metrics):
        names = list(dict.fromkeys(name.partition("@k")[0] for name in metrics))
        ks = list(dict.fromkeys(name.partition("@k")[2] for row in rows for name in row.metrics))
        header = ["k", *model_header, *(text for name in names for text in (name, "95 % interval"))]
        lines = [
            [k, *model, *(text for name in names for text in _shown(row.metrics[f"{name}@k{k}"]))]
            for k in ks
            for model, row in zip(models, rows, strict=True)
            if f"{names[0]}@k{k}" in row.metrics
        ]
        return [header, *lines]
    return [
        ["metric", *model_header, "value", "95 % interval"],
        *(
            [name, *model, *_shown(row.metrics[name])]
            for name in metrics
            for model, row in zip(models, rows, strict=True)
            if name in row.metrics
        ),
    ]


def _shown(metric: "Metric") -> tuple[str, str]:
    return f"{100 * metric.value:.2f}", f"{100 * metric.ci95_low:.2f} to {100 * metric.ci95_high:.2f}"


def _csv(rows: Sequence["Row"]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in rows:
        about = (row.task, row.protocol, row.dataset["name"], row.model["spec"])
        for name, metric in row.metrics.items():
            writer.writerow([*about, name, metric.value, metric.ci95_low, metric.ci95_high, metric.num])
    return buffer.getvalue()
