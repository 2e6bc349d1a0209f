"""The training loop: step, log, save."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from patchssl import ranks
from patchssl.checkpoint import load_checkpoint, save_checkpoint
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ImageSource
from patchssl.data.loader import BadImages, Share, TrainingBatches, iterate
from patchssl.environment import cpu_computes_bf16
from patchssl.errors import CheckpointError
from patchssl.guard import Guard
from patchssl.run_folder import list_unreadable
from patchssl.same_network import check_same_network
from patchssl.skipped_steps import SkippedSteps
from patchssl.step_values import scheduled
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import Trainer
from patchssl.views import MultiCrop
from patchssl.watch import Watch

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
        resume: go on from the newest checkpoint of the folder.
        stop_requested: asked after every step; on True in any process the run is saved and ends early.
        on_step: called after every step.

    Returns:
        The number of steps done in all.

    Raises:
        DataError: too many images are unreadable.
        TrainingError: the loss or its gradient is not finite in too many steps in a row.
        CheckpointError: a checkpoint cannot be read or written.
        ConfigError: the batch cannot be shared out among the processes.
        FailedElsewhereError: another process failed, ended or stopped answering.
    """
    config = networks.config
    train = config.train
    num_steps = train.num_steps(len(source))
    trainer = Trainer(networks, device=device, precision=precision)
    guard = Guard(trainer, source, run, precision=precision)
    step = _resume(run, len(source), trainer, guard) if resume else 0
    crop = MultiCrop(config.views, train.seed)
    share = Share(ranks.rank(), ranks.world_size(), train.accumulate)
    batches = TrainingBatches(
        source, crop, batch_size=train.batch_size, num_steps=num_steps, seed=train.seed, share=share
    )
    bad_images = BadImages(len(source), config.data.max_bad_fraction)
    try:
        with Watch(run, networks, num_images=len(source), num_steps=num_steps) as watch:
            on_gpu = device.startswith("cuda")
            for decoded, keys, bad in iterate(batches, first_step=step, workers=workers, pin_memory=on_gpu):
                watch.waited()
                values = scheduled(config, step, num_steps)
                outcome = trainer.step(decoded, keys, values)
                guard.count(step, outcome)
                watch.stepped(step, values, outcome, train.batch_size, skipped_steps=guard.skipped.total)
                with ranks.failing_alike():
                    guard.check(step, outcome, decoded, keys)
                step += 1
                on_step(Progress(step, num_steps, step * train.batch_size, outcome.loss))
                stopping, found = _agreed(stop_requested(), bad)
                with ranks.failing_alike():
                    for image in bad_images.add(found):
                        logger.warning("unreadable image left out: %s", image)
                due = step % train.checkpoint_every_steps == 0 and guard.may_save()
                if due or step == num_steps or stopping:
                    content = {"num_images": len(source), "skipped_steps": asdict(guard.skipped), **trainer.state()}
                    with ranks.failing_together():
                        if ranks.is_main():
                            path = save_checkpoint(run / "checkpoints", content, step=step, keep_last=train.keep_last)
                            logger.info("saved %s", path)
                if stopping:
                    break
    except (RuntimeError, ranks.LostContactError) as error:
        if not ranks.is_lost_contact(error):
            raise
        raise ranks.lost_contact(error, f"step {step} was not finished; {_kept(run)}: go on with --resume") from None
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


def _resume(run: Path, num_images: int, trainer: Trainer, guard: Guard) -> int:
    """Load the newest checkpoint of a run; returns the step to go on with."""
    path = run / "checkpoints" / "latest"
    with ranks.failing_together():
        content = load_checkpoint(path)
        if content["num_images"] != num_images:
            raise CheckpointError(
                f"{run} was trained on {content['num_images']} images, DATA holds {num_images}; the order of samples "
                "would differ: resume with the data that it began with"
            )
        check_same_network(content, trainer.config, path)
    try:
        trainer.restore(content)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} does not fit the configuration: {str(error).splitlines()[0]}; resume with that of the run"
        ) from None
    # Checkpoints of earlier versions do not count.
    guard.skipped = SkippedSteps(**content.get("skipped_steps", {}))
    logger.info("resumed from %s at step %d", path, content["step"])
    return int(content["step"])


def _kept(run: Path) -> str:
    latest = run / "checkpoints" / "latest"
    return f"the checkpoint {latest.resolve().name} is kept" if latest.exists() else "no checkpoint had been saved yet"
