"""The training loop: step, log, save."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from patchssl import ranks
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import StoredSource
from patchssl.data.loader import BadImages
from patchssl.data.samples import Share
from patchssl.environment import cpu_computes_bf16
from patchssl.feeding import feed
from patchssl.guard import Guard
from patchssl.resumable import Hardware
from patchssl.resuming import Checkpoints
from patchssl.run_folder import list_unreadable
from patchssl.stage_clock import clock_of
from patchssl.step_values import scheduled
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import Trainer
from patchssl.watch import MeasureTeacher, Watch

logger = logging.getLogger(__name__)

Made = TypeVar("Made")


class UnlessStopped(Protocol):
    """Makes a call that may take long, or breaks it off and returns None."""

    def __call__(self, call: Callable[[], Made], /) -> Made | None:
        """What the call returns."""
        ...


def _call(call: Callable[[], Made], /) -> Made | None:
    return call()


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step; handed to the caller after each."""

    step: int
    num_steps: int
    num_images: int
    loss: float


def pretrain(
    networks: StudentTeacher,
    source: StoredSource,
    run: Path,
    *,
    device: str,
    precision: str,
    workers: int,
    resume: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    unless_stopped: UnlessStopped = _call,
    on_step: Callable[[Progress], None] = lambda progress: None,
    measure: MeasureTeacher | None = None,
) -> int:
    """Train a student and a teacher and write metrics and checkpoints into a run folder.

    Processes that have joined share each batch; all of them call this, and the main one writes.

    Args:
        networks: with fresh weights, and the configuration that they were built from.
        source: the images.
        run: the run folder, prepared by prepare_run.
        device: cpu, cuda or mps; cuda:N for the GPU of that number.
        precision: fp32 or bf16.
        workers: loader processes.
        resume: go on from the newest checkpoint of the folder, if there is one yet.
        stop_requested: asked after every step; on True in any process the run is saved and ends early.
        unless_stopped: makes the calls that wait for images; it may break one off and return None, which stops the run
            as well.
        on_step: called after every step.
        measure: asked about the teacher every `log.knn_every_steps` and after the last step; what it says goes into
            the line of that step. It must leave no trace in what training depends on.

    Returns:
        The number of steps done in all.

    Raises:
        DataError: too many images are unreadable.
        TrainingError: the loss or its gradient is not finite in too many steps in a row.
        CheckpointError: a checkpoint cannot be read or written, or does not fit configuration and data.
        ConfigError: the batch cannot be shared out among the processes.
        LoaderError: a loader process died, or an error came that nobody foresaw; alone, this process saves first.
        FailedElsewhereError: another process failed, ended or stopped answering.
    """
    config = networks.config
    train = config.train
    num_steps = train.num_steps(len(source))
    with _lost_contact_told(run):
        clock = clock_of(device)
        trainer = Trainer(networks, device=device, precision=precision, clock=clock)
        hardware = Hardware(device.partition(":")[0], precision, ranks.world_size())
        checkpoints = Checkpoints(run, trainer, source, hardware)
        step, skipped = checkpoints.begin(resume=resume)
        guard = Guard(trainer, source, run, precision=precision, skipped=skipped)
        share = Share(ranks.rank(), ranks.world_size(), train.accumulate)
        where = trainer.fabric.device
        begin = partial(feed, config, source, device=where, num_steps=num_steps, share=share, workers=workers)
        with ranks.failing_together():
            images = unless_stopped(begin)
        if ranks.any_of(images is None):
            return step
        assert images is not None
        bad_images = BadImages(len(source), config.data.max_bad_fraction)
        loaded = images.iterate(first_step=step, pin_memory=device.startswith("cuda"))
        try:
            with (
                closing(loaded),
                Watch(
                    run,
                    networks,
                    num_images=len(source),
                    num_steps=num_steps,
                    first_step=step,
                    workers=images.workers,
                    measure=measure,
                    clock=clock,
                ) as watch,
            ):
                while step < num_steps:
                    with (
                        clock.stage("waiting"),
                        checkpoints.kept_where_loading_fails(step, guard.skipped, guard.may_save),
                    ):
                        batch = unless_stopped(loaded.__next__)
                    if ranks.any_of(batch is None):
                        break
                    assert batch is not None
                    values = scheduled(config, step, num_steps)
                    with clock.stage("moving"):
                        made = images.move(batch.made)
                    with clock.stage("augmenting"):
                        views = images.cut(made)
                    outcome = trainer.step(views, batch.keys, values)
                    guard.count(step, outcome)
                    watch.stepped(
                        step,
                        values,
                        outcome,
                        train.batch_size,
                        loader_s=batch.seconds,
                        skipped_steps=guard.skipped.total,
                    )
                    with ranks.failing_alike():
                        guard.check(step, outcome, views, batch.keys)
                    step += 1
                    on_step(Progress(step, num_steps, step * train.batch_size, outcome.loss))
                    stopping, found = _agreed(stop_requested(), batch.bad)
                    with ranks.failing_alike():
                        for image in bad_images.add(found):
                            logger.warning("unreadable image left out: %s", image)
                    if stopping:
                        break
                    if step % train.checkpoint_every_steps == 0 and guard.may_save():
                        with clock.stage("saving"):
                            checkpoints.save(step, guard.skipped)
                with clock.stage("saving"):
                    checkpoints.save(step, guard.skipped)
                watch.ended()
        finally:
            if ranks.is_main():
                list_unreadable(run, bad_images.reasons)
    return step


def _agreed(stop: bool, bad: list[UnreadableImage]) -> tuple[bool, list[UnreadableImage]]:
    """Whether any process is to stop, and what all of them could not read."""
    num_stopping, num_bad = ranks.summed(torch.tensor([int(stop), len(bad)])).tolist()
    return num_stopping > 0, [image for part in ranks.gather(bad) for image in part] if num_bad else []


def default_precision(device: str) -> str:
    """bf16 where the device computes in it at full speed, else fp32."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device == "cpu" and cpu_computes_bf16() else "fp32"


@contextmanager
def _lost_contact_told(run: Path) -> Iterator[None]:
    """Say where the run stands when another process is lost.

    Raises:
        LostContactError: in place of what gloo or NCCL say.
    """
    try:
        yield
    except (RuntimeError, ranks.LostContactError) as error:
        if not ranks.is_lost_contact(error):
            raise
        latest = run / "checkpoints" / "latest"
        kept = f"the checkpoint {latest.resolve().name} is kept" if latest.exists() else "no checkpoint had been saved"
        raise ranks.lost_contact(error, f"{kept}: go on with --resume") from None
