"""`patchssl data inspect`: what is in a data set before anyone trains on it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from patchssl.cli.bundles import (
    OF_IMAGES,
    ComputeOptions,
    ModelOptions,
    is_given,
    lenient_compute_options,
    model_options,
)
from patchssl.cli.features import compute_features
from patchssl.cli.image_progress import image_progress
from patchssl.cli.inspection_report import render
from patchssl.cli.interrupts import Stopped, StopWish, stop_by_signal
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import format_option, quiet_option, seed_option
from patchssl.cli.processes import runs_alone

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from patchssl.backbones import Backbone
    from patchssl.data.inspection.collection import Collection
    from patchssl.data.inspection.near import NearPairs
    from patchssl.data.inspection.report import Findings

_log = logging.getLogger(__name__)

_OF_MODEL = ("threshold", *(name for name in OF_IMAGES if name not in ("workers", "max_bad_fraction")))
_OF_OUTPUT = ("overwrite", "sheet_images")


@click.command()
@click.argument("data")
@click.option("--model", metavar="SPEC", help="Also search near-duplicates, by the features of this model.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="C",
    default=0.95,
    show_default=True,
    help="Cosine of two class tokens from which on pictures are near-duplicates. What fits depends on the model: look "
    "at the sheet.",
)
@click.option(
    "--view-size",
    type=click.IntRange(min=1),
    metavar="N",
    default=224,
    show_default=True,
    help="Side of the crops that are meant, pixels; images with a shorter side would be enlarged.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New folder for report.json, tables and sheets of pictures; without it nothing is written.",
)
@click.option("--overwrite", is_flag=True, help="Replace the report in --output.")
@click.option(
    "--sheet-images",
    type=click.IntRange(0, 1000),
    metavar="N",
    default=100,
    show_default=True,
    help="Images on the contact sheet, drawn by --seed.",
)
@model_options
@lenient_compute_options
@seed_option()
@format_option()
@quiet_option()
@click.pass_context
def inspect(
    context: click.Context,
    data: str,
    model: str | None,
    threshold: float,
    view_size: int,
    output: Path | None,
    overwrite: bool,
    sheet_images: int,
    model_options: ModelOptions,
    compute: ComputeOptions,
    seed: int,
    output_format: str,
    quiet: bool,
) -> None:
    """Say what is in DATA: counts, sizes, kinds, damage, duplicates, leakage.

    DATA is whatever pretraining or k-NN takes. A folder with train/ and val/ or test/, a CIFAR folder and a CSV file
    with the columns split and label have parts and labels; of a folder of folders the first folder is the label. Every
    image is read and decoded once. Pictures are equal if their pixels are, decoded as 8-bit RGB and upright.

    With --output the folder DIR holds everything by name: report.json, unreadable.csv, duplicates.csv, leakage.csv,
    one_colour.csv, with --model near_duplicates.csv, and contact_sheet.jpg and duplicate_sheet.jpg. In these tables
    ./ stands before names that a spreadsheet would take for formulas.

    \b
    Examples:
      patchssl data inspect photos
      patchssl data inspect labelled --output report
      patchssl data inspect cifar10 --model runs/cifar10 --threshold 0.98 --format json
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    _check_usage(context, model, output, model_options)

    from patchssl.data.inspection.report import make_report
    from patchssl.data.inspection.writing import refuse_folder, write_report

    with stop_by_signal() as wish, wish.at_once("stopping at once; nothing is written"):
        if output is not None:
            refuse_folder(output, overwrite=overwrite)
        backbone = None if model is None else model_options.load(model, device=compute.device, seed=seed)
        findings = _inspect(data, backbone, threshold, compute, wish, quiet)
        report = make_report(findings, view_size_px=view_size)
        if output is not None:
            write_report(output, report, findings, overwrite=overwrite, num_drawn=sheet_images, seed=seed)
            _log.info("written to %s", output)
        click.echo(render(report, output_format))


def _check_usage(context: click.Context, model: str | None, output: Path | None, model_options: ModelOptions) -> None:
    if not runs_alone():
        raise click.UsageError("data inspect runs in one process; start it without torchrun or srun")
    for needed, given, names in (("--model", model, _OF_MODEL), ("--output", output, _OF_OUTPUT)):
        useless = [f"--{name.replace('_', '-')}" for name in names if is_given(context, name)]
        if given is None and useless:
            raise click.UsageError(f"{', '.join(useless)} change nothing without {needed}; leave them out")
    if model is not None:
        model_options.check(model)


def _inspect(
    data: str, backbone: "Backbone | None", threshold: float, compute: ComputeOptions, wish: StopWish, quiet: bool
) -> "Findings":
    from patchssl.data.inspection.collection import open_collection
    from patchssl.data.inspection.duplicates import find_duplicates, pictures_of
    from patchssl.data.inspection.leakage import find_leakage
    from patchssl.data.inspection.reading import read_facts
    from patchssl.data.inspection.report import Findings

    collection = open_collection(data)
    with image_progress("images", len(collection), quiet=quiet) as progress:
        facts = read_facts(collection.source, workers=compute.workers, on_images=_heeding(wish, progress))
    duplicates = find_duplicates(facts)
    near = None
    if backbone is not None:
        near = _near(collection, pictures_of(facts, duplicates), backbone, threshold, compute, wish, quiet)
    return Findings(collection, facts, duplicates, near, find_leakage(collection, duplicates, near))


def _near(
    collection: "Collection",
    pictures: "NDArray[np.int64]",
    backbone: "Backbone",
    threshold: float,
    compute: ComputeOptions,
    wish: StopWish,
    quiet: bool,
) -> "NearPairs":
    """Near-duplicates among pictures that differ, given by their places in the collection."""
    import numpy as np

    from patchssl.data.inspection.near import NearPairs
    from patchssl.data.inspection.subset import Subset
    from patchssl.evaluate.search.near_duplicates import similar_pairs

    places, features = np.empty(0, np.int64), np.empty((0, 1), np.float32)
    if len(pictures):
        subset = Subset(collection.source, pictures)
        computed = compute_features({"different": subset}, backbone, ["cls"], compute=compute, quiet=quiet)
        found = computed["different"]["cls"]
        assert found.ids is not None
        places, features = found.ids.astype(np.int64), found.features
    with image_progress("pictures compared", len(places), quiet=quiet) as progress:
        pairs = similar_pairs(features, threshold, device=compute.device, on_rows=_heeding(wish, progress))
    return NearPairs(
        spec=backbone.spec,
        threshold=threshold,
        one=places[pairs.one],
        other=places[pairs.other],
        cosines=pairs.cosines,
        num_found=pairs.num_found,
        above=pairs.above,
        num_compared=len(places),
    )


def _heeding(wish: StopWish, progress: Callable[[int], None]) -> Callable[[int], None]:
    """Progress that also stops for a signal of which Python lost the exception, as it does while a process forks."""

    def show(num: int) -> None:
        if wish():
            raise Stopped
        progress(num)

    return show
