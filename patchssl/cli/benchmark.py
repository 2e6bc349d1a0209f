"""`patchssl benchmark`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from patchssl.cli.benchmark_results import collect, report, show
from patchssl.cli.bundles import ComputeOptions, ModelOptions, compute_options, model_options
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import (
    format_option,
    no_record_option,
    quiet_option,
    results_option,
    seed_option,
)
from patchssl.cli.processes import evaluation_process, runs_alone
from patchssl.cli.suite_data import open_suite_data
from patchssl.cli.suite_run import cost_measurer, extractor, suite_compute

if TYPE_CHECKING:
    from patchssl.evaluate.results import Row
    from patchssl.evaluate.suites.config import SuiteConfig

logger = logging.getLogger(__name__)


def _places(context: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Turn `NAME=PATH` into a mapping."""
    places: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{value!r} is not of the form NAME=PATH", context, option)
        if name in places:
            raise click.BadParameter(f"{name} is given twice", context, option)
        places[name] = path
    return places


@click.command()
@click.option(
    "--model",
    "models",
    metavar="SPEC",
    multiple=True,
    required=True,
    help="As for the evaluations, or floor:mean-colour, floor:raw-pixels. May be repeated.",
)
@click.option(
    "--suite",
    "suite_source",
    metavar="FILE|NAME",
    default="quick",
    show_default=True,
    help="A YAML file of tasks, or a suite of the package (an unknown name lists them).",
)
@click.option(
    "--data",
    "places",
    metavar="NAME=PATH",
    multiple=True,
    callback=_places,
    help="Where a data set of the suite lies; without it NAME is a path itself. May be repeated.",
)
@click.option(
    "--floors/--no-floors",
    default=True,
    show_default=True,
    help="Also evaluate what the models must beat: mean colour, raw pixels, and each architecture untrained.",
)
@click.option(
    "--cost/--no-cost",
    default=True,
    show_default=True,
    help="Also measure GFLOPs of an image (2 for a multiply-add) and images per second of the forward pass.",
)
@click.option(
    "--skip-done", is_flag=True, help="Take what an equal task of a benchmark left in --results, instead of running it."
)
@model_options
@compute_options
@seed_option()
@results_option()
@no_record_option()
@format_option()
@quiet_option()
@evaluation_process()
def benchmark(
    models: tuple[str, ...],
    suite_source: str,
    places: dict[str, str],
    floors: bool,
    cost: bool,
    skip_done: bool,
    model_options: ModelOptions,
    compute: ComputeOptions,
    seed: int,
    results: Path,
    no_record: bool,
    output_format: str,
    quiet: bool,
) -> None:
    """Run every task of a suite for every model, and show all results in one table.

    The images are gone through once for each model, data set and image size, whatever the number of tasks. Each result
    is recorded as soon as it is there. When a task fails the others go on; at the end there is a line for each failure,
    and the exit code is 1. --image-size holds for all tasks, --crop-fraction for those that crop.

    \b
    Examples:
      patchssl benchmark --model runs/mine --model timm:vit_tiny_patch16_224@random
      patchssl benchmark --model runs/mine --suite paper --data cifar10=data/cifar-10-batches-py --skip-done
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    if not runs_alone():
        raise click.UsageError(
            "benchmark runs in one process; let `patchssl eval` compute the features under torchrun first, and it "
            "reads them from --cache"
        )
    specs = tuple(dict.fromkeys(models))
    options = _options_of(specs, model_options)

    from patchssl.evaluate.suite import Setting, run_suite
    from patchssl.evaluate.suites.config import suite_name
    from patchssl.evaluate.suites.plan import open_data, plan, rows_by_key

    suite = _checked_suite(suite_source, places, model_options.image_size)
    crop_fraction = model_options.crop_fraction or suite.crop_fraction
    # For models to which a file's options do not apply, floors and untrained twins among them.
    others = ModelOptions(preprocess=model_options.preprocess)
    groups = plan(suite.resolved())
    data, failures = open_data(groups, lambda key: open_suite_data(key, suite.builtin, places))
    setting = Setting(
        suite=suite_name(suite_source),
        data=data,
        load=lambda spec: replace(options.get(spec, others), crop_fraction=crop_fraction).load(
            spec, device=compute.device, seed=seed
        ),
        extract=extractor(compute, quiet=quiet),
        compute=suite_compute(compute, seed, quiet=quiet),
        own_geometry=model_options.preprocess == "model",
        cost=cost_measurer(compute) if cost else None,
        done=rows_by_key(_rows_in(results)) if skip_done else {},
        announce=logger.info,
    )
    found = collect(run_suite(groups, specs, setting, floors=floors), None if no_record else results)
    show(found, results, output_format, cost=cost)
    report([*failures, *found.failures], len(found.rows))


def _options_of(specs: Sequence[str], given: ModelOptions) -> dict[str, ModelOptions]:
    """What was given for how a model is read, for each model for which it has a meaning.

    Raises:
        UsageError: it has none for any model.
    """
    # The tasks decide on the size.
    given = replace(given, image_size=None)
    options, refused = {}, None
    for spec in specs:
        try:
            given.check(spec)
            options[spec] = given
        except click.UsageError as error:
            refused = error
    if refused is not None and not options:
        raise refused
    return options


def _checked_suite(source: str, places: Mapping[str, str], image_px: int | None) -> "SuiteConfig":
    """The suite, after everything has been refused that can be told from it and the command line."""
    from patchssl.evaluate.suites.config import BUILTIN, load_suite
    from patchssl.evaluate.suites.tasks import check_task

    suite = load_suite(source)
    if image_px is not None:
        suite = suite.at_size(image_px)
    tasks = suite.resolved()
    for task in tasks:
        check_task(task)
    named = [name for task in tasks for name in (str(task.data), *task.further_data())]
    names = list(dict.fromkeys(name for name in named if name != BUILTIN))
    unknown = [name for name in places if name not in names]
    if unknown:
        allowed = f"it names {', '.join(names)}" if names else "it needs no data set besides the built-in images"
        raise click.UsageError(f"--data: the suite {source} names no data set {', '.join(unknown)}; {allowed}")
    return suite


def _rows_in(results: Path) -> "list[Row]":
    from patchssl.evaluate.results import read_rows

    return read_rows(results)[0] if results.is_dir() else []
