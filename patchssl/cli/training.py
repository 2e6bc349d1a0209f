"""How `pretrain` and `demo` train: settle everything, prepare the run folder, go on until the end or a wish to stop."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from patchssl.cli.hardware import hardware_of, num_local_processes, workers_of
from patchssl.cli.image_cache import as_cached, cached, check_cache_place
from patchssl.cli.interrupts import StopWish
from patchssl.cli.logs import log_file
from patchssl.cli.memory_report import MemoryReport, report_memory, setting_of
from patchssl.cli.options import own_device
from patchssl.cli.progress import training_progress

if TYPE_CHECKING:
    from patchssl.config import Config
    from patchssl.data.images import StoredSource
    from patchssl.evaluate.online_knn import OnlineKnn
    from patchssl.resumable import Hardware
    from patchssl.run_folder import Start
    from patchssl.student_teacher import StudentTeacher

logger = logging.getLogger(__name__)

# Who cuts views out, as the first line tells it; the number is that of loader processes.
_DIVISIONS = {
    "views": "{} loader processes decode and cut views",
    "images": "{} loader processes decode, the device cuts views",
    "resident": "all images decoded on the device",
}


def run_training(
    config: "Config",
    images: "StoredSource",
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
            ready = _begin(config, images, output, resume=resume, overwrite=overwrite, quiet=quiet, stack=stack)
        with ready.memory.explaining(output), training_progress(quiet=quiet or not is_main()) as on_step:
            done = train(
                ready.networks,
                ready.images,
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
    images: "StoredSource"
    hardware: "Hardware"
    device: str
    workers: int
    num_steps: int
    memory: MemoryReport
    online_knn: "OnlineKnn | None"


def _begin(
    config: "Config",
    images: "StoredSource",
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    stack: ExitStack,
) -> _Ready:
    """Build networks, keep images if that is asked for, and prepare the run folder, which an error leaves as it was.

    The log file joins the stack.
    """
    import torch

    from patchssl.derived import derive
    from patchssl.initial import initialise, keep_initial
    from patchssl.process_checks import check_alike, check_processes
    from patchssl.ranks import failing_together, is_main, world_size
    from patchssl.run_folder import begin_run
    from patchssl.student_teacher import StudentTeacher

    start = _find_start(output, resume=resume, overwrite=overwrite, stack=stack)
    with failing_together():
        derived = derive(start.with_open_values(config), len(images))
        config = derived.config
        check_cache_place(config, output)
        hardware = hardware_of(config)
        way = check_processes(config, hardware.device, world_size())
    check_alike(config, images, hardware.device)
    device, workers = own_device(hardware.device), workers_of(config, hardware)
    with failing_together():
        changes = start.check(config, images.ids, hardware)
        # Before anything large is built, whose memory would be counted twice.
        setting = setting_of(config, as_cached(config, images), hardware, workers=workers)
        memory = report_memory(config, setting, num_local=num_local_processes())
        online_knn = _watching(config, device=device)
        torch.manual_seed(config.train.seed)
        with memory.explaining(output):
            networks = StudentTeacher(config)
        initial = initialise(networks, seed=config.train.seed) if start.checkpoint is None else None
    kept = cached(config, images, quiet=quiet)
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
    if kept is not None:
        logger.info("images come from the cache %s", kept.told())
    num_steps = config.train.num_steps(len(images))
    ready = _Ready(networks, images if kept is None else kept, hardware, device, workers, num_steps, memory, online_knn)
    logger.info(
        "%d images of %s; %d steps of %d; %s in %s, %s; run folder %s",
        len(images),
        images.location,
        ready.num_steps,
        config.train.batch_size,
        device if way == "alone" else f"{world_size()} processes ({way}) on {hardware.device}",
        hardware.precision,
        _DIVISIONS[setting.division].format(ready.workers),
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
