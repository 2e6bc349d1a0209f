"""`patchssl demo`."""

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from patchssl.cli.benchmark_results import collect, report, show
from patchssl.cli.bundles import ComputeOptions, ModelOptions
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import (
    device_option,
    format_option,
    no_record_option,
    quiet_option,
    resolve_device,
    results_option,
    seed_option,
    usable_workers,
)
from patchssl.cli.processes import runs_alone
from patchssl.cli.suite_data import open_suite_data
from patchssl.cli.suite_run import extractor, suite_compute

if TYPE_CHECKING:
    from patchssl.cli.benchmark_results import Found
    from patchssl.evaluate.suites.plan import Failure

logger = logging.getLogger(__name__)

RECIPE = SUITE = "demo"
NUM_IMAGES = 4000
IMAGE_SIZE_PX = 64
# Of the views of correspondence, where the difficulty is above 1: measured so that the score falls from there on.
LEAST_NOISE, NOISE_PER_DIFFICULTY = 0.2, 0.1
# Where the data sets of the suite lie below the images.
PLACES = {"folder": "folder", "val": "folder/val", "copydays": "copydays", "revisited": "revisited"}


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for the images and the run.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo in --output.")
@click.option(
    "--difficulty",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of the drawn images; turned up, every number falls towards that of its floor.",
)
@device_option()
@seed_option()
@results_option()
@no_record_option()
@format_option()
@quiet_option()
def demo(
    output: Path,
    overwrite: bool,
    difficulty: float,
    device: str,
    seed: int,
    results: Path,
    no_record: bool,
    output_format: str,
    quiet: bool,
) -> None:
    """Pretrain on drawn images and run every evaluation, beside the same network untrained and two floors.

    Nothing is downloaded. On two CPU cores it takes about six minutes. The images come in the ordinary layouts, so that
    every step is one of the commands that are used on real data; each is shown before it runs.

    \b
    Examples:
      patchssl demo
      patchssl demo --difficulty 4 --output harder
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    if not runs_alone():
        raise click.UsageError(
            "demo runs in one process; start it without torchrun or srun, and `patchssl pretrain` and `patchssl eval` "
            "with them"
        )
    from patchssl.data.synth import write_dataset

    start = time.perf_counter()
    device = resolve_device(device)
    images, run = output / "images", output / "run"
    _make_room(output, (images, run), overwrite=overwrite)
    told = "" if difficulty == 1 else f" --difficulty {difficulty:g}"
    logger.info("1/3  patchssl data synth %s%s", images, told)
    write_dataset(images, num_images=NUM_IMAGES, image_size_px=IMAGE_SIZE_PX, seed=seed, difficulty=difficulty)
    logger.info("2/3  patchssl pretrain %s --output %s --config %s", images / "folder" / "train", run, RECIPE)
    _pretrain(images / "folder" / "train", run, seed=seed, device=device, quiet=quiet)
    places = {name: str(images / part) for name, part in PLACES.items()}
    named = " ".join(f"--data {name}={path}" for name, path in places.items())
    logger.info("3/3  patchssl benchmark --no-cost --suite %s --model %s %s", SUITE, run, named)
    found, failures = _evaluate(
        run,
        places,
        difficulty=difficulty,
        device=device,
        seed=seed,
        results=None if no_record else results,
        quiet=quiet,
    )
    show(found, results, output_format, cost=False)
    report([*failures, *found.failures], len(found.rows))
    logger.info("done in %.0f s", time.perf_counter() - start)
    logger.info("next: patchssl pretrain YOUR_IMAGES --output runs/mine --config cifar10-cpu --set train.epochs=20")
    logger.info("      patchssl eval knn YOUR_LABELLED_IMAGES --model runs/mine")
    logger.info("      patchssl eval correspondence YOUR_IMAGES --model runs/mine")


def _make_room(output: Path, parts: tuple[Path, ...], *, overwrite: bool) -> None:
    from patchssl.errors import DataError

    if not output.exists() or not any(output.iterdir()):
        return
    if not overwrite:
        raise DataError(
            f"{output} holds something already; replace an earlier demo by --overwrite, or take another --output"
        )
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)


def _pretrain(images: Path, run: Path, *, seed: int, device: str, quiet: bool) -> None:
    from patchssl.cli.interrupts import stop_by_signal
    from patchssl.cli.training import run_training
    from patchssl.data.sources import open_unlabelled
    from patchssl.recipes import load_config

    config = load_config(RECIPE, [f"train.seed={seed}", f"train.device={device}"])
    with stop_by_signal() as wish:
        run_training(config, open_unlabelled(images), run, resume=False, overwrite=False, quiet=quiet, wish=wish)
    if wish():
        raise click.exceptions.Exit(0)  # SIGTERM: nobody waits for an evaluation any more


def _evaluate(
    run: Path, places: dict[str, str], *, difficulty: float, device: str, seed: int, results: Path | None, quiet: bool
) -> "tuple[Found, list[Failure]]":
    from patchssl.evaluate.suite import Setting, run_suite
    from patchssl.evaluate.suites.config import load_suite
    from patchssl.evaluate.suites.plan import open_data, plan

    suite = load_suite(SUITE)
    # What covers the images moves with them from view to view, so that more of it would only tell patches apart.
    noise = min(1.0, LEAST_NOISE + NOISE_PER_DIFFICULTY * (difficulty - 1)) if difficulty > 1 else 0.0
    tasks = [
        task.model_copy(update={"noise": noise}) if task.task == "correspondence" else task for task in suite.resolved()
    ]
    groups = plan(tasks)
    data, failures = open_data(groups, lambda key: open_suite_data(key, suite.builtin, places))
    compute = ComputeOptions(
        device=device, precision="auto", workers=usable_workers(), batch_size=64, max_bad_fraction=0.0
    )
    setting = Setting(
        suite=SUITE,
        data=data,
        load=lambda spec: ModelOptions().load(spec, device=device, seed=seed),
        extract=extractor(compute, quiet=quiet),
        compute=suite_compute(compute, seed, quiet=quiet),
        announce=logger.info,
    )
    return collect(run_suite(groups, [str(run)], setting, floors=True), results), failures
