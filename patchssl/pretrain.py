"""The training loop: step, log, save."""

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ImageSource
from patchssl.data.loader import BadImages, TrainingBatches, iterate
from patchssl.environment import cpu_computes_bf16
from patchssl.errors import TrainingError
from patchssl.ranks import world_size
from patchssl.resumable import Hardware
from patchssl.resuming import Checkpoints
from patchssl.run_folder import list_unreadable
from patchssl.step_values import scheduled
from patchssl.structs import SampleKeys, ViewGroup
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import Trainer
from patchssl.views import MultiCrop
from patchssl.watch import Watch

logger = logging.getLogger(__name__)

Batch = tuple[list[ViewGroup], SampleKeys, list[UnreadableImage]]


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step; handed to the caller after each."""

    step: int
    num_steps: int
    num_images: int
    loss: float


def pretrain(
    networks: StudentTeacher,
    source: ImageSource,
    run: Path,
    *,
    device: str,
    precision: str,
    workers: int,
    resume: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    unless_stopped: Callable[[Callable[[], Batch]], Batch | None] = lambda call: call(),
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> int:
    """Train a student and a teacher and write metrics and checkpoints into a run folder.

    Stochastic depth draws on PyTorch's global generator, which the caller seeds before building the networks; its
    state is part of every checkpoint.

    Args:
        networks: with fresh weights, and the configuration that they were built from.
        source: the images.
        run: the run folder, prepared by prepare_run.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        workers: loader processes.
        resume: go on from the newest checkpoint of the folder, if there is one yet.
        stop_requested: asked after every step; on True the run is saved and ends early.
        unless_stopped: makes the call that waits for the images of a step; it may break the call off and return None,
            which stops the run as well.
        on_step: called after every step.

    Returns:
        The number of steps done in all.

    Raises:
        DataError: too many images are unreadable.
        TrainingError: the loss is not finite.
        CheckpointError: a checkpoint cannot be read or written, or does not fit configuration and data.
    """
    config = networks.config
    train = config.train
    num_steps = train.num_steps(len(source))
    trainer = Trainer(networks, device=device, precision=precision)
    checkpoints = Checkpoints(run, trainer, source, Hardware(device, precision, world_size()))
    step = checkpoints.begin(resume=resume)
    crop = MultiCrop(config.views, train.seed)
    batches = TrainingBatches(source, crop, batch_size=train.batch_size, num_steps=num_steps, seed=train.seed)
    bad_images = BadImages(len(source), config.data.max_bad_fraction)
    loaded = iterate(batches, first_step=step, workers=workers, pin_memory=device == "cuda")
    try:
        with closing(loaded), Watch(run, networks, num_images=len(source), num_steps=num_steps) as watch:
            while step < num_steps:
                batch = unless_stopped(loaded.__next__)
                if batch is None:
                    break
                decoded, keys, bad = batch
                watch.waited()
                for image in bad_images.add(bad):
                    logger.warning("unreadable image left out: %s", image)
                values = scheduled(config, step, num_steps)
                outcome = trainer.step(decoded, keys, values)
                if not outcome.is_finite:
                    raise TrainingError(_not_finite(outcome.loss, step, run))
                watch.stepped(step, values, outcome, len(keys))
                step += 1
                on_step(Progress(step, num_steps, step * train.batch_size, outcome.loss))
                if stop_requested():
                    break
                if step % train.checkpoint_every_steps == 0:
                    checkpoints.save(step)
            checkpoints.save(step)
    finally:
        list_unreadable(run, bad_images.reasons)
    return step


def default_precision(device: str) -> str:
    """bf16 where the device computes in it at full speed, else fp32."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device == "cpu" and cpu_computes_bf16() else "fp32"


def _not_finite(loss: float, step: int, run: Path) -> str:
    latest = run / "checkpoints" / "latest"
    kept = f"the checkpoint {latest.resolve().name} is kept" if latest.exists() else "no checkpoint had been saved yet"
    return (
        f"the loss is {loss} at step {step}; {kept}. Lower train.learning_rate, raise train.warmup_fraction, "
        "or use --precision fp32"
    )
