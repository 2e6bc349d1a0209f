"""`patchssl data`: data sets to start with."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from patchssl.cli.logs import configure_logging
from patchssl.cli.options import quiet_option, seed_option

_log = logging.getLogger(__name__)


@click.group()
def data() -> None:
    """Make and look at data sets."""


@data.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--num-images", type=int, default=2000, show_default=True, help="Class images, at least 24.")
@click.option(
    "--image-size", type=int, default=64, show_default=True, help="Side of the class images in pixels, 32 to 2048."
)
@seed_option()
@quiet_option()
def synth(out: Path, num_images: int, image_size: int, seed: int, quiet: bool) -> None:
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
    with _progress(quiet) as on_image:
        write_dataset(out, num_images=num_images, image_size_px=image_size, seed=seed, on_image=on_image)
    click.echo(str(out))


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Report images drawn: a bar on a terminal, a line per quarter elsewhere, nothing when quiet."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("Drawing images")
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _report_quarter


def _report_quarter(done: int, total: int) -> None:
    if done * 4 // total > (done - 1) * 4 // total:
        _log.info("drew %d of %d images", done, total)
