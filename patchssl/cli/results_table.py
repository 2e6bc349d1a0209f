"""`patchssl results table`."""

import functools
import logging
from pathlib import Path

import click

from patchssl.cli.logs import configure_logging
from patchssl.cli.options import FORMATS, quiet_option
from patchssl.cli.row_choice import read_chosen_rows, row_options

logger = logging.getLogger(__name__)


@click.command()
@row_options
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="SPEC",
    help="Only this model, or those of a pattern such as 'runs/*'. Repeatable.",
)
@click.option(
    "--metric",
    default="headline",
    show_default=True,
    metavar="headline|all|NAME",
    help="Each row's own first metric, all metrics, or one such as top1@k20.",
)
@click.option("--published", is_flag=True, help="Show figures of papers below, in a block of their own.")
@click.option("--all-rows", is_flag=True, help="Every row, not only the newest of a model in a column.")
@click.option("--cost", is_flag=True, help="Parameters, GFLOPs and images per second, where rows have them.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice([*FORMATS, "latex"]),
    default="table",
    show_default=True,
    help="With json stdout is one JSON document and nothing else; csv has a line for each model and column.",
)
@quiet_option()
def table(
    results: Path,
    tasks: tuple[str, ...],
    datasets: tuple[str, ...],
    models: tuple[str, ...],
    metric: str,
    published: bool,
    all_rows: bool,
    cost: bool,
    output_format: str,
    quiet: bool,
) -> None:
    """Show models by columns: one column for each task, protocol, data set and setting that changes what numbers mean.

    In each column * is the best model, = one that a paired test over the test images cannot separate from it, and
    ~ one whose interval overlaps the best one's where images cannot be paired. Floors (chance, models of raw pixels or
    colours, untrained networks) stand below and are not ranked, and so do published figures.

    \b
    Examples:
      patchssl results table
      patchssl results table --task knn --dataset cifar10 --metric all --format markdown
      patchssl results table --model 'runs/*' --published --format latex
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    from patchssl.cli.tables import print_table
    from patchssl.errors import DataError
    from patchssl.evaluate.comparing.columns import newest
    from patchssl.evaluate.comparing.published import matching, read_published
    from patchssl.evaluate.comparing.tables import ALL, HEADLINE, build_table
    from patchssl.evaluate.outcomes import read_outcomes

    try:
        rows = read_chosen_rows(results, tasks=tasks, datasets=datasets, models=models)
    except DataError as error:
        if not published:
            raise
        logger.warning("%s", error)
        rows = []
    figures = (
        matching(
            read_published(),
            tasks={row.task for row in rows} or tasks,
            datasets=datasets,
            metric=None if metric in (HEADLINE, ALL) else metric,
        )
        if published
        else ()
    )
    if published and not figures:
        logger.warning("no published figure is of these tasks, data sets and metrics")
    print_table(
        build_table(
            rows if all_rows else newest(rows),
            outcomes=functools.partial(read_outcomes, results),
            metric=metric,
            cost=cost,
            published=figures,
        ),
        output_format,
    )
