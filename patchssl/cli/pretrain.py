"""`patchssl pretrain`."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from patchssl.cli.hardware import hardware_of, num_local_processes, workers_of
from patchssl.cli.interrupts import StopWish, stop_by_signal
from patchssl.cli.logs import configure_logging, log_file
from patchssl.cli.memory_report import MemoryReport, report_memory, setting_of
from patchssl.cli.options import (
    batch_size_option,
    device_option,
    format_option,
    own_device,
    precision_option,
    quiet_option,
    seed_option,
    workers_option,
)
from patchssl.cli.processes import training_process
from patchssl.cli.progress import training_progress

if TYPE_CHECKING:
    from patchssl.config import Config
    from patchssl.data.images import ImageSource
    from patchssl.evaluate.online_knn import OnlineKnn
    from patchssl.resumable import Hardware
    from patchssl.run_folder import Start
    from patchssl.student_teacher import StudentTeacher

logger = logging.getLogger(__name__)


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
    data: Path,
    output: Path,
    source: str | None,
    overrides: tuple[str, ...],
    init: str | None,
    init_heads: bool | None,
    resume: bool,
    auto_resume: bool,
    overwrite: bool,
    max_bad_fraction: float | None,
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

    DATA is a folder of images at any depth, a CIFAR-10/100 python folder, or a CSV file with a `path` column.

    \b
    patchssl pretrain photos --output runs/photos --config imagenet100
    patchssl pretrain cifar10/train --output runs/c10 --config cifar10-cpu --set train.epochs=5
    patchssl pretrain cifar10/train --output runs/c10 --resume
    patchssl pretrain photos --output runs/more --init runs/photos --config runs/photos/config.yaml --init-heads
    patchssl pretrain photos --output runs/dino --init dino_deitsmall16_pretrain.pth
    patchssl pretrain cifar10/train --output runs/c10 --knn-data cifar10 --tensorboard
    patchssl pretrain photos --output runs/large --set model.arch=vit_large_patch16_224 --dry-run
    torchrun --nproc-per-node 8 -m patchssl pretrain photos --output runs/photos --batch-size 1024
    srun --ntasks-per-node 8 --gpus-per-node 8 --kill-on-bad-exit patchssl pretrain photos --output runs/photos

    With several processes --batch-size counts the images of all of them together, so that results depend on their
    number by rounding only; --workers counts for each. Every host has to see DATA and the run folder. For networks that
    are too large for one GPU: --set train.strategy=fsdp. --resume goes on with other processes, too.

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

            for name, text in (("model.init", init), ("log.knn_data", knn_data)):
                if text is not None:
                    # Any text, which as it stands could mean something else in YAML.
                    given.append(f"{name}={yaml.safe_dump(text)}")
            with failing_together():
                resume = resume or (auto_resume and holds_run(output))
                if resume and source is None and (output / "config.yaml").is_file():
                    source = str(output / "config.yaml")
                config = load_config(source, [*overrides, *given])
                images = open_unlabelled(data, apply_exif=config.data.exif_orientation)
            if dry_run:
                from patchssl.cli.dry_run import print_plan

                print_plan(config, images, output_format)
                return
        run_training(config, images, output, resume=resume, overwrite=overwrite, quiet=quiet, wish=wish)


def run_training(
    config: "Config",
    images: "ImageSource",
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    wish: StopWish,
) -> None:
    """Prepare the run folder, seed, and train with progress, log file and a wish to stop.

    Raises:
        Stopped: before the first step; what is in the folder can be resumed or started again.
    """
    from patchssl.pretrain import pretrain as train
    from patchssl.ranks import is_main

    with ExitStack() as stack:
        with wish.at_once():
            ready = _begin(config, images, output, resume=resume, overwrite=overwrite, stack=stack)
        with ready.memory.explaining(output), training_progress(quiet=quiet or not is_main()) as on_step:
            done = train(
                ready.networks,
                images,
                output,
                device=ready.device,
                precision=ready.hardware.precision,
                workers=ready.workers,
                resume=resume,
                stop_requested=wish,
                unless_stopped=wish.unless_stopped,
                on_step=on_step,
                measure=None if ready.online_knn is None else partial(ready.online_knn, stop_requested=wish),
            )
        if done < ready.num_steps:
            logger.info("stopped after step %d of %d; go on with --resume", done, ready.num_steps)
        else:
            logger.info("done; evaluate it: patchssl eval knn DATA --model %s", output)


@dataclass(frozen=True)
class _Ready:
    """What a training is begun with."""

    networks: "StudentTeacher"
    hardware: "Hardware"
    device: str
    workers: int
    num_steps: int
    memory: MemoryReport
    online_knn: "OnlineKnn | None"


def _begin(
    config: "Config", images: "ImageSource", output: Path, *, resume: bool, overwrite: bool, stack: ExitStack
) -> _Ready:
    """Build networks and prepare the run folder, which an error leaves as it was; the log file joins the stack."""
    import torch

    from patchssl.derived import derive
    from patchssl.engine import check_alike, check_processes
    from patchssl.initial import initialise, keep_initial
    from patchssl.ranks import failing_together, is_main, world_size
    from patchssl.run_folder import begin_run
    from patchssl.student_teacher import StudentTeacher

    start = _find_start(output, resume=resume, overwrite=overwrite, stack=stack)
    with failing_together():
        derived = derive(start.with_open_values(config), len(images))
        config = derived.config
        hardware = hardware_of(config)
        way = check_processes(config, hardware.device, world_size())
    check_alike(config, images, hardware.device)
    device, workers = own_device(hardware.device), workers_of(config, hardware)
    # Before anything large is built, whose memory would be counted twice.
    memory = report_memory(config, setting_of(images, hardware, workers=workers), num_local=num_local_processes())
    with failing_together():
        changes = start.check(config, images.ids, hardware)
        online_knn = _watching(config, device=device)
        torch.manual_seed(config.train.seed)
        networks = StudentTeacher(config)
        initial = initialise(networks, seed=config.train.seed) if start.checkpoint is None else None
    with failing_together():
        if is_main():
            begin_run(output, config, start, device=device, changes=changes)
            if start.checkpoint is None:
                keep_initial(output, initial)
            if not resume:
                stack.enter_context(log_file(output / "log.txt"))
    for line in derived.told:
        logger.info(line)
    for change in changes:
        change.log()
    if initial is not None:
        initial.log()
    num_steps = config.train.num_steps(len(images))
    ready = _Ready(networks, hardware, device, workers, num_steps, memory, online_knn)
    logger.info(
        "%d images of %s; %d steps of %d; %s in %s, %d loader processes; run folder %s",
        len(images),
        images.location,
        ready.num_steps,
        config.train.batch_size,
        device if way == "alone" else f"{world_size()} processes ({way}) on {hardware.device}",
        hardware.precision,
        ready.workers,
        output,
    )
    memory.log()
    if online_knn is not None:
        with failing_together():
            online_knn.read(num_workers=ready.workers)
    return ready


def _watching(config: "Config", *, device: str) -> "OnlineKnn | None":
    """What the run is to be watched with besides its own lines; nothing is written yet."""
    if config.log.tensorboard:
        from patchssl.event_file import check_tensorboard

        check_tensorboard()
    if config.log.knn_data is None:
        return None
    from patchssl.evaluate.online_knn import OnlineKnn

    return OnlineKnn(config, device=device)


def _find_start(output: Path, *, resume: bool, overwrite: bool, stack: ExitStack) -> "Start":
    """Where the run begins, as the main process finds the folder; with --resume the log file joins the stack."""
    from patchssl.ranks import failing_together, from_main, is_main
    from patchssl.run_folder import find_start, holds_run

    start = None
    with failing_together():
        if is_main():
            if resume and holds_run(output):
                stack.enter_context(log_file(output / "log.txt"))  # what is said of damaged checkpoints belongs there
            start = find_start(output, resume=resume, overwrite=overwrite)
    found = from_main(start)
    assert found is not None
    return found
