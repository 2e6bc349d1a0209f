"""Which rows of a folder a command is about."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from patchssl.evaluate.results import Row


def row_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--results`, `--task` and `--dataset`, passed as `results: Path`, `tasks` and `datasets: tuple[str, ...]`."""
    options = (
        click.option(
            "--results",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            default=Path("results/rows"),
            show_default=True,
            help="Folder of the rows that evaluations wrote.",
        ),
        click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only this task, such as knn. Repeatable."),
        click.option(
            "--dataset",
            "datasets",
            multiple=True,
            metavar="NAME",
            help="Only this data set, or those of a pattern such as 'cifar*'. Repeatable.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def read_chosen_rows(
    results: Path, *, tasks: Sequence[str] = (), datasets: Sequence[str] = (), models: Sequence[str] = ()
) -> "list[Row]":
    """The rows of a folder that are of given tasks, data sets and models; lines that are no rows are warned of.

    Args:
        results: the folder.
        tasks: names or patterns; none lets all pass, here and below.
        datasets: names or patterns.
        models: SPECs or patterns.

    Raises:
        DataError: there is no such folder, it holds no rows, or none of them matches.
    """
    from patchssl.errors import DataError
    from patchssl.evaluate.results import read_rows

    rows, broken = read_rows(results)
    if not rows:
        found = f"{len(broken)} broken lines and no row" if broken else "none"
        raise DataError(
            f"{results} should hold result rows in files *.jsonl and has {found}; an evaluation such as "
            f"`patchssl eval knn DATA --model SPEC --results {results}` writes one"
        )
    choices: list[tuple[str, Sequence[str], Callable[[Row], str]]] = [
        ("--task", tasks, lambda row: row.task),
        ("--dataset", datasets, lambda row: str(row.dataset["name"])),
        ("--model", models, lambda row: str(row.model["spec"])),
    ]
    for option, wanted, text_of in choices:
        there = sorted({text_of(row) for row in rows})
        rows = [row for row in rows if not wanted or _matches(text_of(row), wanted)]
        if not rows:
            raise DataError(f"no row matches {option} {' '.join(wanted)}; there are: {', '.join(there)}")
    return rows


def _matches(text: str, patterns: Sequence[str]) -> bool:
    return any(text == pattern or fnmatchcase(text, pattern) for pattern in patterns)
