"""`patchssl results compare`."""

from pathlib import Path

import click

from patchssl.cli.logs import configure_logging
from patchssl.cli.options import format_option, quiet_option, seed_option
from patchssl.cli.row_choice import read_chosen_rows, row_options


@click.command()
@click.argument("a")
@click.argument("b")
@row_options
@click.option("--metric", metavar="NAME", help="Only this metric, such as top1@k20; else every one that both have.")
@seed_option()
@format_option()
@quiet_option()
def compare(
    a: str,
    b: str,
    results: Path,
    tasks: tuple[str, ...],
    datasets: tuple[str, ...],
    metric: str | None,
    seed: int,
    output_format: str,
    quiet: bool,
) -> None:
    """Say for models A and B which is better, by how much, and whether the test images suffice to tell.

    A and B are models as --model named them, or the beginnings of row ids (at least 4 digits; --format csv of `results
    table` shows them). Each of their rows of equal comparability is compared image by image: both models get the same
    resamples of the test images. Rows that differ in a setting that changes what numbers mean are named and refused.

    \b
    Examples:
      patchssl results compare runs/new runs/old
      patchssl results compare runs/new runs/new@random --task knn --metric top1@k20 --format json
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    from patchssl.cli.comparisons import print_comparisons
    from patchssl.evaluate.comparing.pairs import compare_models
    from patchssl.evaluate.outcomes import read_outcomes

    rows = read_chosen_rows(results, tasks=tasks, datasets=datasets)
    comparisons = compare_models(rows, a, b, lambda row: read_outcomes(results, row), metric=metric, seed=seed)
    print_comparisons(comparisons, output_format)
