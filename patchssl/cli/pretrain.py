"""`patchssl pretrain`."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from patchssl.cli.interrupts import stop_by_signal
from patchssl.cli.logs import configure_logging, log_file
from patchssl.cli.options import (
    batch_size_option,
    device_option,
    own_device,
    precision_option,
    quiet_option,
    resolve_device,
    seed_option,
    usable_workers,
    workers_option,
)
from patchssl.cli.processes import training_process
from patchssl.cli.progress import training_progress

if TYPE_CHECKING:
    from patchssl.config import Config
    from patchssl.data.images import ImageSource
    from patchssl.initial import Initial
    from patchssl.student_teacher import StudentTeacher


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
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
@click.option("--overwrite", is_flag=True, help="Replace the run in --output.")
@click.option(
    "--max-bad-fraction", type=click.FloatRange(0, 1), help="Unreadable images above this fraction are an error."
)
@device_option(default=None)
@precision_option(default=None)
@workers_option(configured=True)
@batch_size_option(default=None)
@seed_option(default=None)
@quiet_option()
@training_process()
def pretrain(
    data: Path,
    output: Path,
    source: str | None,
    overrides: tuple[str, ...],
    init: str | None,
    init_heads: bool | None,
    resume: bool,
    overwrite: bool,
    max_bad_fraction: float | None,
    device: str | None,
    precision: str | None,
    workers: int | None,
    batch_size: int | None,
    seed: int | None,
    quiet: bool,
) -> None:
    """Pretrain a Vision Transformer on DATA without labels.

    DATA is a folder of images at any depth, a CIFAR-10/100 python folder, or a CSV file with a `path` column.

    \b
    patchssl pretrain photos --output runs/photos --config imagenet100
    patchssl pretrain cifar10/train --output runs/c10 --config cifar10-cpu --set train.epochs=5
    patchssl pretrain cifar10/train --output runs/c10 --resume
    patchssl pretrain photos --output runs/more --init runs/photos --config runs/photos/config.yaml --init-heads
    patchssl pretrain photos --output runs/dino --init dino_deitsmall16_pretrain.pth
    torchrun --nproc-per-node 8 -m patchssl pretrain photos --output runs/photos --batch-size 1024
    srun --ntasks-per-node 8 --gpus-per-node 8 --kill-on-bad-exit patchssl pretrain photos --output runs/photos

    With several processes --batch-size counts the images of all of them together, so that results depend on their
    number by rounding only; --workers counts for each. Every host has to see DATA and the run folder. For networks that
    are too large for one GPU: --set train.strategy=fsdp. --resume goes on with other processes, too.

    Ctrl-C and SIGTERM save a checkpoint after the current step; --resume goes on exactly there.
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite contradict each other; give one of them")
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
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    import yaml

    from patchssl.ranks import failing_together
    from patchssl.recipes import load_config

    if init is not None:
        # Any text, which as it stands could mean something else in YAML.
        given.append(f"model.init={yaml.safe_dump(init)}")

    with failing_together():
        if resume and source is None and (output / "config.yaml").is_file():
            source = str(output / "config.yaml")
        config = load_config(source, [*overrides, *given])

        from patchssl.data.sources import open_unlabelled

        images = open_unlabelled(data, apply_exif=config.data.exif_orientation)
    run_training(config, images, output, resume=resume, overwrite=overwrite, quiet=quiet)


def run_training(
    config: "Config", images: "ImageSource", output: Path, *, resume: bool, overwrite: bool, quiet: bool
) -> None:
    """Prepare the run folder, seed, and train with progress, log file and signals."""
    import logging

    from patchssl.derived import derive
    from patchssl.pretrain import default_precision
    from patchssl.pretrain import pretrain as train
    from patchssl.process_checks import check_alike, check_processes
    from patchssl.ranks import failing_together, from_main, is_main, world_size

    with failing_together():
        derived = derive(config, len(images))
        config = derived.config
        kind = resolve_device(config.train.device)
        device = own_device(kind)
        way = check_processes(config, kind, world_size())
    check_alike(config, images, kind)
    wished = config.train.precision
    precision = from_main(default_precision(kind) if wished == "auto" else str(wished))
    workers = config.data.workers
    if workers is None:
        # On the CPU alone, training fills the cores; a single process that reads ahead is what it can spare.
        workers = 1 if kind == "cpu" else usable_workers(shared=True)
    networks, initial = _prepare(config, output, device=device, resume=resume, overwrite=overwrite)
    logger = logging.getLogger(__name__)
    with log_file(output / "log.txt") if is_main() else nullcontext():
        num_steps = config.train.num_steps(len(images))
        for line in derived.told:
            logger.info(line)
        if initial is not None:
            initial.log()
        logger.info(
            "%d images of %s; %d steps of %d; %s in %s, %d loader processes; run folder %s",
            len(images),
            images.location,
            num_steps,
            config.train.batch_size,
            device if way == "alone" else f"{world_size()} processes ({way}) on {kind}",
            precision,
            workers,
            output,
        )
        with stop_by_signal() as wish, training_progress(quiet=quiet or not is_main()) as on_step:
            done = train(
                networks,
                images,
                output,
                device=device,
                precision=precision,
                workers=workers,
                resume=resume,
                stop_requested=wish,
                on_step=on_step,
            )
        if done < num_steps:
            logger.info("stopped after step %d of %d; go on with --resume", done, num_steps)
        else:
            logger.info("done; evaluate it: patchssl eval knn DATA --model %s", output)


def _prepare(
    config: "Config", output: Path, *, device: str, resume: bool, overwrite: bool
) -> "tuple[StudentTeacher, Initial | None]":
    """Networks, filled from the model of --init, and the run folder, which an error in any process leaves as it was."""
    import torch

    from patchssl.checkpoint import load_checkpoint
    from patchssl.initial import initialise, keep_initial
    from patchssl.ranks import failing_together, is_main
    from patchssl.run_folder import prepare_run
    from patchssl.same_network import check_same_network
    from patchssl.student_teacher import StudentTeacher

    latest = output / "checkpoints" / "latest"
    with failing_together():
        torch.manual_seed(config.train.seed)
        networks = StudentTeacher(config)
        initial = None if resume else initialise(networks, seed=config.train.seed)
        if resume and latest.exists():
            check_same_network(load_checkpoint(latest, mapped=True), config, latest)
    with failing_together():
        if is_main():
            prepare_run(output, config, device=device, resume=resume, overwrite=overwrite)
            if not resume:
                keep_initial(output, initial)
    return networks, initial
