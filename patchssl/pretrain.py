"""The training loop: step, log, save."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from patchssl.checkpoint import load_checkpoint, save_checkpoint
from patchssl.data.images import ImageSource
from patchssl.data.loader import BadImages, TrainingBatches, iterate
from patchssl.environment import cpu_computes_bf16
from patchssl.errors import CheckpointError, TrainingError
from patchssl.run_folder import list_unreadable
from patchssl.same_network import check_same_network
from patchssl.step_values import scheduled
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import Trainer
from patchssl.views import MultiCrop
from patchssl.watch import MeasureTeacher, Watch

logger = logging.getLogger(__name__)


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
    on_step: Callable[[Progress], None] = lambda progress: None,
    measure: MeasureTeacher | None = None,
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
        resume: go on from the newest checkpoint of the folder.
        stop_requested: asked after every step; on True the run is saved and ends early.
        on_step: called after every step.
        measure: asked about the teacher every `log.knn_every_steps` and after the last step; what it says goes into
            the line of that step. It must leave no trace in what training depends on.

    Returns:
        The number of steps done in all.

    Raises:
        DataError: too many images are unreadable.
        TrainingError: the loss is not finite.
        CheckpointError: a checkpoint cannot be read or written.
    """
    config = networks.config
    train = config.train
    num_steps = train.num_steps(len(source))
    trainer = Trainer(networks, device=device, precision=precision)
    step = _resume(run, len(source), trainer) if resume else 0
    crop = MultiCrop(config.views, train.seed)
    batches = TrainingBatches(source, crop, batch_size=train.batch_size, num_steps=num_steps, seed=train.seed)
    bad_images = BadImages(len(source), config.data.max_bad_fraction)
    try:
        with Watch(
            run,
            networks,
            num_images=len(source),
            num_steps=num_steps,
            first_step=step,
            workers=workers,
            measure=measure,
        ) as watch:
            for decoded, keys, bad in iterate(batches, first_step=step, workers=workers, pin_memory=device == "cuda"):
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
                stopping = stop_requested()
                if step % train.checkpoint_every_steps == 0 or step == num_steps or stopping:
                    content = {"num_images": len(source), **trainer.state()}
                    path = save_checkpoint(run / "checkpoints", content, step=step, keep_last=train.keep_last)
                    logger.info("saved %s", path)
                if stopping:
                    break
                watch.waits()
            watch.ended()
    finally:
        list_unreadable(run, bad_images.reasons)
    return step


def default_precision(device: str) -> str:
    """bf16 where the device computes in it at full speed, else fp32."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device == "cpu" and cpu_computes_bf16() else "fp32"


def _resume(run: Path, num_images: int, trainer: Trainer) -> int:
    """Load the newest checkpoint of a run; returns the step to go on with."""
    path = run / "checkpoints" / "latest"
    content = load_checkpoint(path)
    if content["num_images"] != num_images:
        raise CheckpointError(
            f"{run} was trained on {content['num_images']} images, DATA holds {num_images}; the order of samples would "
            "differ: resume with the data that it began with"
        )
    check_same_network(content, trainer.config, path)
    try:
        trainer.restore(content)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} does not fit the configuration: {str(error).splitlines()[0]}; resume with that of the run"
        ) from None
    logger.info("resumed from %s at step %d", path, content["step"])
    return int(content["step"])


def _not_finite(loss: float, step: int, run: Path) -> str:
    latest = run / "checkpoints" / "latest"
    kept = f"the checkpoint {latest.resolve().name} is kept" if latest.exists() else "no checkpoint had been saved yet"
    return (
        f"the loss is {loss} at step {step}; {kept}. Lower train.learning_rate, raise train.warmup_fraction, "
        "or use --precision fp32"
    )
