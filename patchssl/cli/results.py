"""`patchssl results`."""

import click

from patchssl.cli.lazy import Entry, LazyGroup

VIEWS = {
    "table": Entry("patchssl.cli.results_table:table", "Models by columns; what cannot be compared stands apart."),
    "compare": Entry("patchssl.cli.results_compare:compare", "Say of two models which is better, and how surely."),
}


@click.group(cls=LazyGroup, entries=VIEWS)
def results() -> None:
    """Show what evaluations found, from the rows that they wrote.

    \b
    Examples:
      patchssl results table --dataset cifar10
      patchssl results compare runs/new runs/old
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
