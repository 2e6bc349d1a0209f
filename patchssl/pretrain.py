"""The training loop: step, log, save."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision, Precision

from patchssl.augmentation import prepare_views, view_settings
from patchssl.backbones.vit import recompute_activations, use_plain_attention
from patchssl.checkpoint import load_checkpoint, save_checkpoint
from patchssl.config import Config
from patchssl.data.images import ImageSource
from patchssl.data.loader import BadImages, TrainingBatches, iterate
from patchssl.environment import cpu_computes_bf16
from patchssl.errors import CheckpointError, TrainingError
from patchssl.monitor import MetricsFile, StepClock
from patchssl.run_folder import list_unreadable
from patchssl.same_network import check_same_network
from patchssl.schedules import cosine, linear
from patchssl.structs import SampleKeys, ViewGroup
from patchssl.student_teacher import LossTerms, StudentTeacher
from patchssl.updates import clip_gradients, weight_decay_groups
from patchssl.views import MultiCrop

logger = logging.getLogger(__name__)


class _MixedPrecision(MixedPrecision):
    """Leaves what a network returns as it is: the copy in float32 of a large matrix of prototypes is not wanted."""

    def convert_output(self, data: Any) -> Any:
        """Do nothing."""
        return data


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
    patch_weight: float
    prototypes_frozen: bool


def scheduled(config: Config, step: int, num_steps: int) -> StepValues:
    """All scheduled values at a step, counted from 0, by a configuration in which `derive` has filled what was null."""
    train, loss = config.train, config.loss
    assert train.learning_rate is not None
    assert train.ema_momentum is not None
    assert train.warmup_fraction is not None
    warmup = round(train.warmup_fraction * num_steps)
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
            start=loss.teacher_temperature_start,
            final=loss.teacher_temperature,
            num_steps=round(loss.teacher_temperature_warmup_fraction * num_steps),
        ),
        patch_weight=linear(
            step,
            start=loss.patch_weight_start,
            final=loss.patch_weight,
            num_steps=round(loss.patch_weight_warmup_fraction * num_steps),
        ),
        prototypes_frozen=step < round(train.freeze_last_layer_fraction * num_steps),
    )


class Trainer:
    """Networks and optimizer on their device, and the training step."""

    def __init__(self, networks: StudentTeacher, *, device: str, precision: str) -> None:
        """Move the networks to the device and set up AdamW.

        Args:
            networks: with the configuration that they were built from.
            device: cpu, cuda or mps.
            precision: fp32 or bf16.
        """
        self.networks, self.config = networks, networks.config
        self.fabric = Fabric(
            accelerator=device,
            devices=1,
            plugins=_MixedPrecision("bf16-mixed", device) if precision == "bf16" else Precision(),
        )
        if device == "cpu" and precision == "bf16":
            for network in (networks.student, networks.teacher):
                use_plain_attention(network.backbone)
        recompute_activations(networks.student.backbone)
        decayed, free = weight_decay_groups(networks.student)
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, fused=device != "mps")
        networks.to(self.fabric.device)
        self._student, self._fabric_optimizer = self.fabric.setup(networks.student, self.optimizer)
        self._student.train()
        self._settings = view_settings(self.config.photometric, self.config.model.patch_px)

    def losses(self, decoded: Sequence[ViewGroup], keys: SampleKeys, values: StepValues) -> LossTerms:
        """Augment the views of a batch and compute their loss."""
        seed = self.config.train.seed
        views = prepare_views(
            decoded,
            keys,
            self._settings,
            seed=seed,
            device=self.fabric.device,
            teacher_patch_probability=self.config.photometric.teacher_patch_probability,
        )
        with self.fabric.autocast():
            return self.networks.losses(
                views,
                self._student,
                teacher_temperature=values.teacher_temperature,
                patch_weight=values.patch_weight,
            )

    def update(self, terms: LossTerms, values: StepValues) -> None:
        """Move student, centres and teacher by one step."""
        train, networks = self.config.train, self.networks
        decayed, free = self.optimizer.param_groups
        decayed.update(lr=values.learning_rate, weight_decay=values.weight_decay)
        free.update(lr=values.learning_rate)
        self.fabric.backward(terms.total)
        if values.prototypes_frozen:
            for parameter in networks.student.prototype_parameters():
                parameter.grad = None
        if train.clip_gradient is not None:
            clip_gradients(networks.student, train.clip_gradient, mode=train.clip_mode)
        self._fabric_optimizer.step()
        self._fabric_optimizer.zero_grad(set_to_none=True)
        networks.update_centers(terms)
        networks.ema_step(values.momentum)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, besides the data."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "config": self.config.model_dump(mode="json"),
            "student": self.networks.student.state_dict(),
            "teacher": self.networks.teacher.state_dict(),
            "centers": self.networks.centers,
            "optimizer": self.optimizer.state_dict(),
            "generator": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned.

        Raises:
            RuntimeError, ValueError, KeyError: it is of other networks.
        """
        self.networks.student.load_state_dict(state["student"])
        self.networks.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.networks.centers = {
            name: state["centers"][name].to(center.device) for name, center in self.networks.centers.items()
        }
        torch.set_rng_state(state["generator"]["cpu"])
        if torch.cuda.is_available() and state["generator"]["cuda"]:
            torch.cuda.set_rng_state_all(state["generator"]["cuda"])


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
    metrics, clock = MetricsFile(run / "metrics.jsonl"), StepClock()
    try:
        for decoded, keys, bad in iterate(batches, first_step=step, workers=workers, pin_memory=device == "cuda"):
            clock.waited()
            for image in bad_images.add(bad):
                logger.warning("unreadable image left out: %s", image)
            values = scheduled(config, step, num_steps)
            terms = trainer.losses(decoded, keys, values)
            loss = terms.total.item()
            if not math.isfinite(loss):
                raise TrainingError(_not_finite(loss, step, run))
            trainer.update(terms, values)
            clock.stepped(len(keys))
            if step % config.log.every_steps == 0 or step == num_steps - 1:
                line = _line(step, len(source), config, values, terms)
                entropies = networks.teacher_entropy(terms, values.teacher_temperature)
                metrics.write(line | {f"teacher_entropy_{kind}": v for kind, v in entropies.items()} | clock.read())
            step += 1
            on_step(Progress(step, num_steps, step * train.batch_size, loss))
            stopping = stop_requested()
            if step % train.checkpoint_every_steps == 0 or step == num_steps or stopping:
                content = {"num_images": len(source), **trainer.state()}
                path = save_checkpoint(run / "checkpoints", content, step=step, keep_last=train.keep_last)
                logger.info("saved %s", path)
            if stopping:
                break
    finally:
        metrics.close()
        list_unreadable(run, bad_images.reasons)
    return step


def default_precision(device: str) -> str:
    """bf16 where the device computes in it at full speed, else fp32."""
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device == "cpu" and cpu_computes_bf16() else "fp32"


def _line(step: int, num_images: int, config: Config, values: StepValues, terms: LossTerms) -> dict[str, float]:
    """What `metrics.jsonl` says of a step."""
    batch_size = config.train.batch_size
    return {
        "step": step,
        "epoch": step * batch_size / num_images,
        "images": (step + 1) * batch_size,
        "loss": terms.total.item(),
        "loss_cls": terms.cls.item(),
        "loss_patch": terms.patch.item(),
        "patch_pairs": terms.num_patch_pairs,
        "lr": values.learning_rate,
        "weight_decay": values.weight_decay,
        "momentum": values.momentum,
        "teacher_temperature": values.teacher_temperature,
        "patch_weight": values.patch_weight,
        **({"loss_koleo": terms.koleo.item()} if config.loss.koleo_weight else {}),
    }


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
