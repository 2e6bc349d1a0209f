"""`patchssl pretrain`."""

from pathlib import Path

import click

from patchssl.cli.interrupts import stop_by_signal
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import (
    batch_size_option,
    device_option,
    format_option,
    precision_option,
    quiet_option,
    seed_option,
    workers_option,
)
from patchssl.cli.processes import training_process
from patchssl.cli.training import run_training


@click.command()
@click.argument("data")
@click.option(
    "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="The run folder to write."
)
@click.option(
    "--config",
    "source",
    metavar="FILE|NAME",
    help="A YAML file, or a recipe of the package (an unknown name lists them); with --resume, the run's own.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one setting; may be repeated."
)
@click.option(
    "--init",
    metavar="SPEC",
    help="Go on from a model of the configured architecture: RUN, FILE, timm:NAME … as for --model; see "
    "`patchssl inspect --help`.",
)
@click.option(
    "--init-heads/--no-init-heads",
    default=None,
    show_default="from the configuration",
    help="Take the projection heads of --init as well, of a run or a training checkpoint; or start with fresh ones.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --output from its newest checkpoint.")
@click.option(
    "--auto-resume",
    is_flag=True,
    help="As --resume where --output holds a run, else begin: the same line for a job however often it is queued.",
)
@click.option("--overwrite", is_flag=True, help="Replace the run in --output.")
@click.option(
    "--max-bad-fraction", type=click.FloatRange(0, 1), help="Unreadable images above this fraction are an error."
)
@click.option(
    "--cache-images",
    metavar="DIR",
    help="Keep decoded images in DIR, shrunk to what views take (data.cache_side), and read them from there: made "
    "once, by the run that comes first, and made anew when images have changed.",
)
@click.option(
    "--knn-data",
    metavar="DATA",
    help="Measure the teacher by k-NN as it is trained, on some images of labelled DATA as `eval knn` takes it.",
)
@click.option(
    "--tensorboard/--no-tensorboard",
    default=None,
    show_default="from the configuration",
    help="Write the metrics for TensorBoard as well, into RUN/tensorboard.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Train nothing and write nothing: print sizes and an estimate of the memory, and what to change if there is "
    "too little of it. Exit code 1 if it does not fit.",
)
@format_option()
@device_option(default=None)
@precision_option(default=None)
@workers_option(configured=True)
@batch_size_option(default=None)
@seed_option(default=None)
@quiet_option()
@training_process()
def pretrain(
    data: str,
    output: Path,
    source: str | None,
    overrides: tuple[str, ...],
    init: str | None,
    init_heads: bool | None,
    resume: bool,
    auto_resume: bool,
    overwrite: bool,
    max_bad_fraction: float | None,
    cache_images: str | None,
    knn_data: str | None,
    tensorboard: bool | None,
    dry_run: bool,
    output_format: str,
    device: str | None,
    precision: str | None,
    workers: int | None,
    batch_size: int | None,
    seed: int | None,
    quiet: bool,
) -> None:
    """Pretrain a Vision Transformer on DATA without labels.

    DATA is a folder of images at any depth, a CIFAR-10/100 python folder, a CSV file with a `path` column, or shards:
    tar files (WebDataset) or parquet files with images, as a file, a folder of them, or a pattern in quotes, here or
    behind any URL that fsspec knows.

    \b
    patchssl pretrain photos --output runs/photos --config imagenet100
    patchssl pretrain 'shards/train-{000..127}.tar' --output runs/shards
    patchssl pretrain 's3://bucket/data/*.parquet' --output runs/rows --set data.image_column=image
    patchssl pretrain cifar10/train --output runs/c10 --config cifar10-cpu --set train.epochs=5
    patchssl pretrain cifar10/train --output runs/c10 --resume
    patchssl pretrain photos --output runs/more --init runs/photos --config runs/photos/config.yaml --init-heads
    patchssl pretrain photos --output runs/dino --init dino_deitsmall16_pretrain.pth
    patchssl pretrain cifar10/train --output runs/c10 --knn-data cifar10 --tensorboard
    patchssl pretrain photos --output runs/photos --cache-images /scratch/images
    patchssl pretrain photos --output runs/large --set model.arch=vit_large_patch16_224 --dry-run
    torchrun --nproc-per-node 8 -m patchssl pretrain photos --output runs/photos --batch-size 1024
    srun --ntasks-per-node 8 --gpus-per-node 8 --kill-on-bad-exit patchssl pretrain photos --output runs/photos

    With several processes --batch-size counts the images of all of them together, so that results depend on their
    number by rounding only; --workers counts for each. Every host has to see DATA and the run folder. For networks that
    are too large for one GPU: --set train.strategy=fsdp. --resume goes on with other processes, too.

    Small images are kept decoded on the training device. Others are decoded by the loader processes and cut into views
    by a GPU, or without one by these processes (--set data.division=views|images|resident). The log says at the end
    where the time went.

    Ctrl-C and SIGTERM save a checkpoint after the current step; --resume goes on exactly there, and after a kill from
    the newest checkpoint. One that is damaged is moved aside, and the one before it taken.
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite contradict each other; give one of them")
    if auto_resume and (resume or overwrite):
        other = "--resume" if resume else "--overwrite"
        raise click.UsageError(f"--auto-resume and {other} contradict each other; give one of them")
    if resume and (init is not None or init_heads is not None):
        raise click.UsageError("--init is for the start of a run; --resume goes on from its checkpoint: leave one out")
    options = {
        "train.device": device,
        "train.precision": precision,
        "data.workers": workers,
        "train.batch_size": batch_size,
        "train.seed": seed,
        "data.max_bad_fraction": max_bad_fraction,
        "model.init_heads": init_heads,
        "log.tensorboard": tensorboard,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    with stop_by_signal() as wish:
        with wish.at_once():
            import yaml

            from patchssl.data.sources import open_unlabelled
            from patchssl.ranks import failing_together
            from patchssl.recipes import load_config
            from patchssl.run_folder import holds_run

            if cache_images is not None:
                # A resumed run may be started from elsewhere.
                cache_images = str(Path(cache_images).absolute())
            for name, text in (("model.init", init), ("log.knn_data", knn_data), ("data.cache_images", cache_images)):
                if text is not None:
                    # Any text, which as it stands could mean something else in YAML.
                    given.append(f"{name}={yaml.safe_dump(text)}")
            with failing_together():
                resume = resume or (auto_resume and holds_run(output))
                if resume and source is None and (output / "config.yaml").is_file():
                    source = str(output / "config.yaml")
                config = load_config(source, [*overrides, *given])
                images = open_unlabelled(
                    data, apply_exif=config.data.exif_orientation, image_column=config.data.image_column
                )
            if dry_run:
                from patchssl.cli.dry_run import print_plan

                print_plan(config, images, output_format)
                return
        run_training(config, images, output, resume=resume, overwrite=overwrite, quiet=quiet, wish=wish)
