"""Networks and optimizer on a device, and one training step."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from torch import Tensor

from patchssl.augmentation import prepare_views, view_settings
from patchssl.backbones.vit import recompute_activations, recompute_blocks, use_plain_attention
from patchssl.planning import plan, total_pairs
from patchssl.step_values import StepValues
from patchssl.structs import BatchViews, SampleKeys, ViewGroup
from patchssl.student_teacher import Answer, PartLoss, StudentTeacher
from patchssl.updates import clip_gradients, weight_decay_groups


@dataclass(frozen=True)
class LossTerms:
    """The loss of a batch and what it is made of; without gradients.

    Attributes:
        total: what is minimised.
        cls: mean over the pairs of class tokens.
        patch: mean over the pairs of patches; 0 where there are none.
        koleo: mean over the global views of how close together the class tokens of a batch are; 0 where not asked for.
        num_patch_pairs: how many pairs of patches there are.
        answer: the teacher's.
    """

    total: Tensor
    cls: Tensor
    patch: Tensor
    koleo: Tensor
    num_patch_pairs: int
    answer: Answer

    @classmethod
    def of(cls, parts: Sequence[PartLoss], num_patch_pairs: int, answer: Answer) -> "LossTerms":
        """Put the parts of a batch together."""

        def mean(kind: str) -> Tensor:
            if kind not in parts[0].sums:
                return torch.zeros_like(parts[0].koleo)
            return _sum([part.sums[kind] for part in parts]) / max(sum(part.shares[kind] for part in parts), 1e-12)

        return cls(
            total=_sum([part.total.detach() for part in parts]),
            cls=mean("cls"),
            patch=mean("patch"),
            koleo=_sum([part.koleo for part in parts]),
            num_patch_pairs=num_patch_pairs,
            answer=answer,
        )


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        terms: its loss.
        loss: the number that was minimised.
        gradient_norm: before clipping, over all trained parameters.
        is_finite: whether both are; where they are not, nothing was changed by the step.
    """

    terms: LossTerms
    loss: float
    gradient_norm: float
    is_finite: bool


class _MixedPrecision(MixedPrecision):
    """Leaves what a network returns as it is: the copy in float32 of a large matrix of prototypes is not wanted."""

    def convert_output(self, data: Any) -> Any:
        """Do nothing."""
        return data


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
        if self.config.train.checkpoint_activations:
            recompute_blocks(networks.student.backbone)
        decayed, free = weight_decay_groups(networks.student)
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, fused=device != "mps")
        networks.to(self.fabric.device)
        self._student, self._fabric_optimizer = self.fabric.setup(networks.student, self.optimizer)
        self._student.train()
        self._settings = view_settings(self.config.photometric, self.config.model.patch_px)

    def step(self, decoded: Sequence[ViewGroup], keys: SampleKeys, values: StepValues) -> Outcome:
        """Train on a batch; leave everything as it was where the loss or its gradients are not finite.

        Args:
            decoded: the views of the batch, uint8.
            keys: its samples.
            values: scheduled for this step.
        """
        terms = self.losses(decoded, keys, values)
        return self.update(terms, values)

    def losses(self, decoded: Sequence[ViewGroup], keys: SampleKeys, values: StepValues) -> LossTerms:
        """Augment the views of a batch, compute their loss and add its gradients to those of the student.

        With `train.accumulate` the batch goes through the student in so many parts; the sum of their gradients is that
        of the whole, since each pair has its weight in the whole.
        """
        num_parts = self.config.train.accumulate
        cuts = list(_cut(decoded, keys, num_parts))
        plans = [plan(groups, self.config) for groups, _ in cuts]
        num_pairs = total_pairs(plans)
        views = [self._prepared(*cut) for cut in cuts]
        with self.fabric.autocast():
            answer = self.networks.answer([view.teacher for view in views], values.teacher_temperature)
        parts = []
        for number, (view, of_part, teacher) in enumerate(zip(views, plans, answer.parts, strict=True)):
            with self.fabric.no_backward_sync(self._student, enabled=number < num_parts - 1):
                with self.fabric.autocast():
                    part = self.networks.part_loss(
                        view.student,
                        self._student,
                        kept=of_part.kept,
                        pairs=of_part.pairs,
                        weights=of_part.weights(num_pairs, average=self.config.loss.average),
                        teacher=teacher,
                        centers=answer.centers,
                        teacher_temperature=values.teacher_temperature,
                        patch_weight=values.patch_weight,
                        part=1 / num_parts,
                    )
                self.fabric.backward(part.total)
                # A loss that is kept keeps its graph, and with it the gradient of all prototypes.
                parts.append(replace(part, total=part.total.detach()))
        num_patch_pairs = int(num_pairs[1].sum()) if len(num_pairs) > 1 else 0
        return LossTerms.of(parts, num_patch_pairs, answer)

    def update(self, terms: LossTerms, values: StepValues) -> Outcome:
        """Move student, centres and teacher by one step, if loss and gradients are finite; gradients are gone then."""
        train, networks = self.config.train, self.networks
        decayed, free = self.optimizer.param_groups
        decayed.update(lr=values.learning_rate, weight_decay=values.weight_decay)
        free.update(lr=values.learning_rate)
        if values.prototypes_frozen:
            for parameter in networks.student.prototype_parameters():
                parameter.grad = None
        norm = clip_gradients(networks.student, train.clip_gradient or math.inf, mode=train.clip_mode)
        outcome = _outcome(terms, float(norm))
        if outcome.is_finite:
            self._fabric_optimizer.step()
            networks.update_centers(terms.answer)
            networks.ema_step(values.momentum)
        self._fabric_optimizer.zero_grad(set_to_none=True)
        return outcome

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

    def _prepared(self, decoded: Sequence[ViewGroup], keys: SampleKeys) -> BatchViews:
        return prepare_views(
            decoded,
            keys,
            self._settings,
            seed=self.config.train.seed,
            device=self.fabric.device,
            teacher_patch_probability=self.config.photometric.teacher_patch_probability,
        )


def _cut(
    decoded: Sequence[ViewGroup], keys: SampleKeys, num_parts: int
) -> Iterator[tuple[tuple[ViewGroup, ...], SampleKeys]]:
    """Equal parts of the images of a batch, with their keys."""
    size = len(keys) // num_parts
    for start in range(0, len(keys), size):
        images = slice(start, start + size)
        yield tuple(ViewGroup(group.pixels[images], group.boxes[images]) for group in decoded), keys[images]


def _outcome(terms: LossTerms, gradient_norm: float) -> Outcome:
    loss = terms.total.item()
    return Outcome(terms, loss, gradient_norm, is_finite=math.isfinite(loss) and math.isfinite(gradient_norm))


def _sum(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
