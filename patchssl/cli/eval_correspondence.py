"""`patchssl eval correspondence`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from patchssl.cli.bundles import ComputeOptions, ModelOptions, model_options, uncached_compute_options
from patchssl.cli.image_progress import image_progress
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import format_option, no_record_option, quiet_option, results_option, seed_option
from patchssl.cli.output import print_row
from patchssl.cli.processes import evaluation_process, is_reporting
from patchssl.cli.text_tables import aligned, markdown
from patchssl.errors import DataError

if TYPE_CHECKING:
    from patchssl.evaluate.outcomes import Outcomes, Scored
    from patchssl.evaluate.results import Row

PROTOCOLS = ("warps",)
KINDS = ("crop", "scale", "flip", "perspective", "colour", "all")


def _names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Turn `crop,flip` into ("crop", "flip")."""
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        told = ", ".join(map(repr, unknown))
        raise click.BadParameter(f"{told} is no kind of warp; allowed: {','.join(KINDS)}", context, option)
    return names


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--model", required=True, metavar="SPEC", help="RUN, FILE, timm:NAME or torchvision:NAME; see patchssl inspect."
)
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="warps",
    show_default=True,
    help="warps: the first view is a square crop, 0.5 to 0.7 of the shorter side; the second, of the same image, is "
    "moved by up to half its side and warped. Tokens of the last block, cosine, nearest neighbour.",
)
@click.option(
    "--views",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="1",
    help="Pairs of views of each image and kind of warp; more make the result steadier.",
)
@click.option(
    "--kinds",
    callback=_names,
    metavar="KIND,KIND,…",
    show_default=",".join(KINDS),
    help="What is done to the second view beyond moving it. crop: nothing; scale: zoomed in or out by 1.4 to 2; flip: "
    "left to right; perspective: each corner drawn in by up to a quarter; colour: brightness, contrast, saturation "
    "and hue changed, sometimes grey or solarised; all: all of these.",
)
@click.option(
    "--max-images",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="all",
    help="Use at most N images, drawn by --seed.",
)
@click.option(
    "--noise",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    metavar="S",
    help="Noise that is added to every view by itself: its standard deviation, of the range from black to white.",
)
@click.option(
    "--per-image",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write a CSV file with a line per image and a column per metric; empty where an image does not count.",
)
@model_options
@uncached_compute_options
@seed_option()
@results_option()
@no_record_option()
@format_option()
@quiet_option()
@evaluation_process()
def correspondence(
    data: Path,
    model: str,
    protocol: str,
    views: int | None,
    kinds: tuple[str, ...] | None,
    max_images: int | None,
    noise: float,
    per_image: Path | None,
    model_options: ModelOptions,
    compute: ComputeOptions,
    seed: int,
    results: Path,
    no_record: bool,
    output_format: str,
    quiet: bool,
) -> None:
    """Find the patches of one view of an image again in another, for views whose geometry is known.

    DATA is a folder of images at any depth, a CIFAR python folder (its training images), or a CSV file with a column
    path. No labels are needed.

    acc_at_T is the share of patches of the first view for which the most similar patch of the second lies at most T
    patches from where it should, across and down: at 0.5 it is the patch that shows the very point. acc_at_T@KIND is
    that for one kind of warp, acc_at_T the mean over the kinds. A perfect method reaches 100 %. Beside it stand, for
    the same patches: chance; position, the patch at the same place of the grid, which a model that only knows places
    would find; and raw patches, found by their pixels.

    A patch is as large as the model makes it, so only models with equally many patches are compared.

    \b
    Examples:
      patchssl eval correspondence photos --model runs/cifar10
      patchssl eval correspondence photos --model timm:vit_small_patch16_224 --max-images 500 --views 2
      patchssl eval correspondence photos --model runs/cifar10 --kinds flip,colour --per-image patches.csv
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    model_options.check(model)
    if model_options.crop_fraction is not None:
        raise click.UsageError("--crop-fraction changes nothing about views that are cut by their warp; leave it out")
    if per_image is not None and not per_image.parent.is_dir():
        raise click.UsageError(
            f"--per-image {per_image}: there is no folder {per_image.parent}; make it or name another"
        )
    if not is_reporting():
        return  # one process does it all

    from patchssl.evaluate.outcomes import record

    scored = _score(
        data,
        model,
        protocol,
        model_options,
        compute,
        views=views,
        kinds=kinds,
        max_images=max_images,
        noise=noise,
        seed=seed,
        quiet=quiet,
    )
    if per_image is not None:
        _write_outcomes(per_image, scored.outcomes)
    if output_format in ("table", "markdown"):
        _print_tables(scored.row, output_format)
    else:
        print_row(scored.row, output_format)
    if not no_record:
        record(results, scored)


def _score(
    data: Path,
    model: str,
    protocol: str,
    model_options: ModelOptions,
    compute: ComputeOptions,
    *,
    views: int | None,
    kinds: tuple[str, ...] | None,
    max_images: int | None,
    noise: float,
    seed: int,
    quiet: bool,
) -> "Scored":
    from patchssl.data.sources import open_unlabelled
    from patchssl.evaluate.correspondence import PROTOCOLS as DEFAULTS
    from patchssl.evaluate.correspondence import score_images

    source = open_unlabelled(data)
    backbone = model_options.load(model, device=compute.device, seed=seed)
    num_images = min(len(source), max_images or len(source))
    num_views = views or DEFAULTS[protocol].views
    told = "images" if num_views == 1 else f"images {num_views} times"
    with image_progress(told, num_images * num_views, quiet=quiet) as progress:
        return score_images(
            backbone,
            source,
            protocol=protocol,
            views=views,
            kinds=kinds,
            max_images=max_images,
            noise=noise,
            batch_size=compute.batch_size,
            num_workers=compute.workers,
            precision=compute.precision,
            max_bad_fraction=compute.max_bad_fraction,
            seed=seed,
            progress=progress,
        )


def _write_outcomes(path: Path, outcomes: "Outcomes") -> None:
    """Write a line per image; the file appears whole or not at all."""
    from patchssl.atomic import replacing

    assert outcomes.ids is not None
    columns = list(outcomes.values.values())
    try:
        # Names of files that are no UTF-8 come with surrogates.
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", *outcomes.values])
            for row, name in enumerate(outcomes.ids):
                values = [float(column[row]) for column in columns]
                writer.writerow([name, *("" if value != value else value for value in values)])  # NaN differs from all
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}; choose another file") from None


def _print_tables(row: "Row", output_format: str) -> None:
    """Print the metrics with what stands beside each of them."""
    sizes = ", ".join(f"{size:,} {name}" for name, size in row.dataset["splits"].items())
    grid = " x ".join(map(str, row.settings["grid"]))
    title = f"{row.task} ({row.protocol}) of {row.model['spec']} on {row.dataset['name']}"
    click.echo(f"{title} ({sizes}, {grid} patches), percent\n")
    floors = ("chance", "position", "raw_patches")
    header = ["metric", "value", "95 % interval", *(name.replace("_", " ") for name in floors)]
    lines = [
        [
            name,
            _percent([metric.value]),
            _percent([metric.ci95_low, metric.ci95_high]),
            *(_percent([row.details[floor][name]]) for floor in floors),
        ]
        for name, metric in row.metrics.items()
    ]
    click.echo((aligned if output_format == "table" else markdown)([header, *lines], num_left=1))


def _percent(fractions: Sequence[float]) -> str:
    return " to ".join(f"{100 * value:.2f}" for value in fractions)
