"""`patchssl data`: data sets to start with."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from patchssl.cli.data_inspect import inspect
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import quiet_option, seed_option, workers_option

_log = logging.getLogger(__name__)


@click.group()
def data() -> None:
    """Make and look at data sets."""


data.add_command(inspect)


@data.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--num-images", type=int, default=2000, show_default=True, help="Class images, at least 24.")
@click.option(
    "--image-size", type=int, default=64, show_default=True, help="Side of the class images in pixels, 32 to 2048."
)
@click.option(
    "--difficulty",
    type=float,
    metavar="D",
    default=1.0,
    show_default=True,
    help="Above 0, at most 100; the larger, the nearer every score comes to that of guessing.",
)
@seed_option()
@quiet_option()
def synth(out: Path, num_images: int, image_size: int, difficulty: float, seed: int, quiet: bool) -> None:
    """Draw the built-in images into the new folder OUT.

    OUT/folder has 12 classes of textured shapes (train and val), for pretraining, k-NN and linear probes; OUT/copydays
    has originals and edited copies, for copy detection; OUT/revisited has queries and other views of the same objects,
    for retrieval. The pictures of the last two are 4:3 with twice the image size as long side. The same seed gives the
    same images. OUT is printed when it is complete.

    \b
    Example:
      patchssl data synth drawn --num-images 500
      patchssl eval knn drawn/folder --model timm:vit_tiny_patch16_224@random
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    from patchssl.data.synth import write_dataset

    configure_logging(quiet=quiet)
    with _progress("Drawing images", "drew %d of %d images", quiet=quiet) as on_image:
        write_dataset(
            out, num_images=num_images, image_size_px=image_size, seed=seed, difficulty=difficulty, on_image=on_image
        )
    click.echo(str(out))


def _numbers(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """Turn `3,5,8` into (3, 5, 8)."""
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of whole numbers such as 3,5,8", context, option) from None


@data.command()
@click.argument("originals", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--num-originals",
    type=int,
    metavar="N",
    show_default="all",
    help="Choose so many by the seed, 2 to 10,000; fewer are the first of more.",
)
@click.option(
    "--strong-per-image", type=int, metavar="N", default=2, show_default=True, help="Strong copies of each, 1 to 99."
)
@click.option(
    "--qualities",
    callback=_numbers,
    metavar="Q,Q,…",
    default="3,5,8,10,15,20,30,50,75",
    show_default=True,
    help="Of the JPEG copies, 1 to 95.",
)
@click.option(
    "--crops",
    callback=_numbers,
    metavar="P,P,…",
    default="10,15,20,30,40,50,60,70,80",
    show_default=True,
    help="Percent of the surface that is cut off, 1 to 95.",
)
@click.option(
    "--difficulty",
    type=float,
    metavar="D",
    default=1.0,
    show_default=True,
    help="Above 0, at most 100; the number of the strong copies' edits and their strength grow with it.",
)
@click.option(
    "--max-side", type=int, metavar="N", show_default="as they are", help="Shrink originals with a longer side, pixels."
)
@click.option(
    "--min-side",
    type=int,
    metavar="N",
    default=64,
    show_default=True,
    help="Leave out photographs with a shorter side, pixels.",
)
@workers_option()
@seed_option()
@quiet_option()
def copies(originals: Path, out: Path, quiet: bool, **values: Any) -> None:
    """Make a benchmark for copy detection from the photographs in the folder ORIGINALS, at any depth.

    The new folder OUT has the layout of Copydays: original/, jpegqual/QUALITY/, crops/PERCENT/ and strong/, whose
    copies are blurred, turned, seen from the side, recoloured, written on, partly covered or shown on a screen, or
    several of these. OUT/originals.csv says which photograph each original is, OUT/edits.csv what was done to each
    strong copy, OUT/left_out.csv what could not be used. Originals are written as RGB JPEGs of quality 95, turned
    upright; every copy is made from the pixels before that. The same seed gives the same copies. OUT is printed when
    it is complete.

    \b
    Example:
      patchssl data copies photos benchmark --num-originals 500
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    from patchssl.data.copies import write_copies
    from patchssl.data.sources import open_unlabelled

    configure_logging(quiet=quiet)
    values["max_side_px"], values["min_side_px"] = values.pop("max_side"), values.pop("min_side")
    source = open_unlabelled(originals, apply_exif=True)
    with _progress("Copying originals", "copied %d of %d originals", quiet=quiet) as on_original:
        write_copies(out, source, on_original=on_original, **values)
    click.echo(str(out))


@contextmanager
def _progress(title: str, line: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Report images done: a bar on a terminal, a line per quarter elsewhere, nothing when quiet.

    Args:
        title: of the bar.
        line: with two places for numbers, those done and all.
        quiet: report nothing.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield lambda done, total: _report_quarter(line, done, total)


def _report_quarter(line: str, done: int, total: int) -> None:
    if done * 4 // total > (done - 1) * 4 // total:
        _log.info(line, done, total)
