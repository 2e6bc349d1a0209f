"""The training loop: step, log, save."""

import csv
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from patchssl.augmentation import prepare_views, view_settings
from patchssl.backbones.vit import use_plain_attention
from patchssl.checkpoint import load_checkpoint, save_checkpoint
from patchssl.config import Config, dump_config
from patchssl.data.images import ImageSource
from patchssl.data.loader import BadImages, TrainingBatches, iterate
from patchssl.errors import CheckpointError, TrainingError
from patchssl.monitor import MetricsFile, StepClock, environment
from patchssl.schedules import cosine, linear
from patchssl.student_teacher import StudentTeacher, clip_gradients, weight_decay_groups
from patchssl.views import MultiCrop

logger = logging.getLogger(__name__)

_FABRIC_PRECISION: Mapping[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step; handed to the caller after each."""

    step: int
    num_steps: int
    num_images: int
    loss: float


@dataclass(frozen=True)
class StepValues:
    """The scheduled values of one step."""

    learning_rate: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    prototypes_frozen: bool


def scheduled(config: Config, step: int, num_steps: int) -> StepValues:
    """All scheduled values at a step, counted from 0."""
    train, loss = config.train, config.loss
    warmup = round(train.warmup_fraction * num_steps)
    temperature_warmup = round(loss.teacher_temperature_warmup_fraction * num_steps)
    return StepValues(
        learning_rate=cosine(
            step,
            base=train.learning_rate,
            final=train.final_learning_rate,
            num_steps=num_steps,
            num_warmup_steps=warmup,
        ),
        weight_decay=cosine(step, base=train.weight_decay, final=train.final_weight_decay, num_steps=num_steps),
        momentum=cosine(step, base=train.ema_momentum, final=train.final_ema_momentum, num_steps=num_steps),
        teacher_temperature=linear(
            step,
            start=loss.teacher_temperature_start if temperature_warmup else loss.teacher_temperature,
            final=loss.teacher_temperature,
            num_steps=temperature_warmup,
        ),
        prototypes_frozen=step < round(train.freeze_last_layer_fraction * num_steps),
    )


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
    """Train a student and a teacher and write a run folder.

    Stochastic depth draws on PyTorch's global generator, which the caller seeds before building the networks; its
    state is part of every checkpoint.

    Args:
        networks: with fresh weights, and the configuration that they were built from.
        source: the images.
        run: the run folder; made if needed, and prepared by prepare_run.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        workers: loader processes.
        resume: go on from the newest checkpoint of the folder.
        stop_requested: asked after every step; on True the run is saved and ends early.
        on_step: called after every step.

    Returns:
        The number of steps done in all.

    Raises:
        DataError: too many images are unreadable.
        TrainingError: the loss is not finite.
        CheckpointError: a checkpoint cannot be read or written.
    """
    config = networks.config
    fabric = Fabric(accelerator=device, devices=1, precision=_FABRIC_PRECISION[precision])
    num_steps = config.train.num_steps(len(source))
    if device == "cpu" and precision == "bf16":
        for network in (networks.student, networks.teacher):
            use_plain_attention(network.backbone)
    decayed, free = weight_decay_groups(networks.student)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, fused=device != "mps")
    networks.to(fabric.device)
    student, fabric_optimizer = fabric.setup(networks.student, optimizer)
    first_step = _restore(run, len(source), networks, optimizer) if resume else 0

    batches = TrainingBatches(
        source,
        MultiCrop(config.views, config.train.seed),
        batch_size=config.train.batch_size,
        num_steps=num_steps,
        seed=config.train.seed,
    )
    settings = view_settings(config.photometric, config.model.patch_px)
    bad_images = BadImages(len(source), config.data.max_bad_fraction)
    metrics = MetricsFile(run / "metrics.jsonl")
    clock = StepClock()
    step = first_step
    student.train()

    def save() -> None:
        path = save_checkpoint(
            run / "checkpoints",
            _content(config, len(source), networks, optimizer),
            step=step,
            keep_last=config.train.keep_last,
        )
        logger.info("saved %s", path)

    try:
        for decoded, keys, bad in iterate(
            batches, first_step=first_step, workers=workers, pin_memory=fabric.device.type == "cuda"
        ):
            clock.waited()
            for image in bad_images.add(bad):
                logger.warning("unreadable image left out: %s", image)
            values = scheduled(config, step, num_steps)
            optimizer.param_groups[0].update(lr=values.learning_rate, weight_decay=values.weight_decay)
            optimizer.param_groups[1].update(lr=values.learning_rate)

            views = prepare_views(decoded, keys, settings, seed=config.train.seed, device=fabric.device)
            with fabric.autocast():
                terms = networks.losses(views, student, teacher_temperature=values.teacher_temperature)
            loss = terms.total.item()
            if not math.isfinite(loss):
                raise TrainingError(_not_finite(loss, step, run))
            fabric.backward(terms.total)
            if values.prototypes_frozen:
                for parameter in networks.student.prototype_parameters():
                    parameter.grad = None
            if config.train.clip_gradient is not None:
                clip_gradients(networks.student, config.train.clip_gradient, mode=config.train.clip_mode)
            fabric_optimizer.step()
            fabric_optimizer.zero_grad(set_to_none=True)
            networks.update_centers(terms)
            networks.ema_step(values.momentum)
            clock.stepped(len(keys))

            if step % config.log.every_steps == 0 or step == num_steps - 1:
                line = {
                    "step": step,
                    "epoch": step * config.train.batch_size / len(source),
                    "images": (step + 1) * config.train.batch_size,
                    "loss": loss,
                    "loss_cls": float(terms.cls),
                    "loss_patch": float(terms.patch),
                    "patch_pairs": terms.num_patch_pairs,
                    "lr": values.learning_rate,
                    "weight_decay": values.weight_decay,
                    "momentum": values.momentum,
                    "teacher_temperature": values.teacher_temperature,
                }
                entropies = terms.teacher_entropy(values.teacher_temperature)
                line |= {f"teacher_entropy_{kind}": value for kind, value in entropies.items()}
                metrics.write(line | clock.read())
            step += 1
            on_step(Progress(step, num_steps, step * config.train.batch_size, loss))
            stopping = stop_requested()
            if step % config.train.checkpoint_every_steps == 0 or step == num_steps or stopping:
                save()
            if stopping:
                break
    finally:
        metrics.close()
        _report_bad(run, bad_images)
    return step


def prepare_run(run: Path, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Make a run folder, or check that an existing one may be written to.

    Raises:
        CheckpointError: the folder holds a run and neither resume nor overwrite is asked for, holds none to resume, or
            is no folder of ours to overwrite.
    """
    parts = [run / "checkpoints" / "latest", *(run / "checkpoints").glob("step-*.pt"), run / "metrics.jsonl"]
    holds_run = any(part.exists() for part in parts)
    if resume and not (run / "checkpoints" / "latest").exists():
        raise CheckpointError(f"{run} holds no checkpoint to resume from; leave --resume out to start there")
    if holds_run and not resume and not overwrite:
        raise CheckpointError(
            f"{run} already holds a run; go on with it by --resume, replace it by --overwrite, or take another --output"
        )
    ours = holds_run or (run / "config.yaml").exists()
    if not ours and run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise CheckpointError(f"{run} exists and is not a run folder; take another --output")
    if overwrite:
        for part in parts:
            part.unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (run / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")


def default_precision(device: str) -> str:
    """bf16 where the device computes in it at full speed, else fp32."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8", errors="replace") if device == "cpu" and info.is_file() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


def _content(
    config: Config, num_images: int, networks: StudentTeacher, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "num_images": num_images,
        "student": networks.student.state_dict(),
        "teacher": networks.teacher.state_dict(),
        "centers": networks.centers,
        "optimizer": optimizer.state_dict(),
        "generator": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }


def _restore(run: Path, num_images: int, networks: StudentTeacher, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest checkpoint into networks and optimizer; returns the step to go on with."""
    path = run / "checkpoints" / "latest"
    content = load_checkpoint(path)
    if content["num_images"] != num_images:
        raise CheckpointError(
            f"{run} was trained on {content['num_images']} images, DATA holds {num_images}; the order of samples would "
            "differ: resume with the data that it began with"
        )
    try:
        networks.student.load_state_dict(content["student"])
        networks.teacher.load_state_dict(content["teacher"])
        optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} does not fit the configuration: {str(error).splitlines()[0]}; resume with that of the run"
        ) from None
    networks.centers = {name: center.to(networks.centers[name].device) for name, center in content["centers"].items()}
    torch.set_rng_state(content["generator"]["cpu"])
    if torch.cuda.is_available() and content["generator"]["cuda"]:
        torch.cuda.set_rng_state_all(content["generator"]["cuda"])
    logger.info("resumed from %s at step %d", path, content["step"])
    return int(content["step"])


def _not_finite(loss: float, step: int, run: Path) -> str:
    latest = run / "checkpoints" / "latest"
    kept = f"the checkpoint {latest.resolve().name} is kept" if latest.exists() else "no checkpoint had been saved yet"
    return (
        f"the loss is {loss} at step {step}; {kept}. Lower train.learning_rate, raise train.warmup_fraction, "
        "or use --precision fp32"
    )


def _report_bad(run: Path, bad_images: BadImages) -> None:
    if bad_images.reasons:
        with (run / "unreadable.tsv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows(sorted(bad_images.reasons.items()))
        logger.warning("%d unreadable images, listed in %s", len(bad_images.reasons), run / "unreadable.tsv")
