"""`patchssl demo`."""

import logging
import shutil
import time
from pathlib import Path

import click

from patchssl.cli.bundles import ComputeOptions, ModelOptions
from patchssl.cli.features import compute_features
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

logger = logging.getLogger(__name__)

RECIPE = "demo"
NUM_IMAGES = 4000
IMAGE_SIZE_PX = 64


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for the images and the run.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo in --output.")
@device_option()
@seed_option()
@results_option()
@no_record_option()
@format_option()
@quiet_option()
def demo(
    output: Path,
    overwrite: bool,
    device: str,
    seed: int,
    results: Path,
    no_record: bool,
    output_format: str,
    quiet: bool,
) -> None:
    """Pretrain on drawn images and evaluate by k-NN, beside the same network untrained.

    Nothing is downloaded. On two CPU cores it takes about four minutes. The images come in the ordinary layouts, so
    that every step is one of the commands that are used on real data; each is shown before it runs.
    """
    configure_logging(quiet=quiet)
    from patchssl.cli.output import print_rows
    from patchssl.cli.pretrain import run_training
    from patchssl.data.sources import open_labelled, open_unlabelled
    from patchssl.data.synth import write_dataset
    from patchssl.errors import DataError
    from patchssl.evaluate.knn import score
    from patchssl.evaluate.results import record
    from patchssl.recipes import load_config

    start = time.perf_counter()
    device = resolve_device(device)
    images, run = output / "images", output / "run"
    if output.exists() and any(output.iterdir()):
        if not overwrite:
            raise DataError(
                f"{output} holds something already; replace an earlier demo by --overwrite, or take another --output"
            )
        for part in (images, run):
            shutil.rmtree(part, ignore_errors=True)
    logger.info("1/3  patchssl data synth %s", images)
    write_dataset(images, num_images=NUM_IMAGES, image_size_px=IMAGE_SIZE_PX, seed=seed)

    logger.info("2/3  patchssl pretrain %s --output %s --config %s", images / "folder" / "train", run, RECIPE)
    config = load_config(RECIPE, [f"train.seed={seed}", f"train.device={device}"])
    source = open_unlabelled(images / "folder" / "train")
    run_training(config, source, run, resume=False, overwrite=False, quiet=quiet)

    rows = []
    compute = ComputeOptions(
        device=device, precision="auto", workers=usable_workers(), batch_size=64, max_bad_fraction=0.0
    )
    sources = open_labelled(images / "folder", apply_exif=False)
    for spec in (f"{run}@random", str(run)):
        logger.info("3/3  patchssl eval knn %s --model %s", images / "folder", spec)
        since = time.perf_counter()
        backbone = ModelOptions().load(spec, device=device, seed=seed)
        features = compute_features(sources, backbone, ["cls"], compute=compute, quiet=quiet)
        scored = score(
            features["train"]["cls"],
            features["test"]["cls"],
            features_s=time.perf_counter() - since,
            device=device,
            seed=seed,
        )
        if not no_record:
            record(results, scored)
        rows.append(scored.row)
    print_rows(rows, output_format)
    logger.info("done in %.0f s", time.perf_counter() - start)
    logger.info("next: patchssl pretrain YOUR_IMAGES --output runs/mine --config cifar10-cpu --set train.epochs=20")
    logger.info("      patchssl eval knn YOUR_LABELLED_IMAGES --model runs/mine")
