"""Networks and optimizer on a device, and one training step."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from patchssl import ranks
from patchssl.augmentation import prepare_views, view_settings
from patchssl.backbones.vit import recompute_activations, recompute_blocks, use_plain_attention
from patchssl.engine import Engine
from patchssl.planning import plan, total_pairs
from patchssl.shards import cut_like, cut_optimizer_state, whole
from patchssl.stage_clock import UNTIMED, Stages
from patchssl.step_values import StepValues
from patchssl.stochastic_depth import draw_factors, dropped_branches
from patchssl.structs import BatchViews, SampleKeys, ViewGroup
from patchssl.student_teacher import Answer, PartLoss, StudentTeacher
from patchssl.updates import clip_gradients, weight_decay_groups
from patchssl.workspace import Workspace


@dataclass(frozen=True)
class LossTerms:
    """The loss of a batch and what it is made of, over all processes and the same for each; without gradients.

    Attributes:
        total: what is minimised.
        cls: mean over the pairs of class tokens.
        patch: mean over the pairs of patches; 0 where there are none.
        koleo: mean over the global views of how close together the class tokens of a batch are; 0 where not asked for.
        num_patch_pairs: how many pairs of patches there are.
        answer: the teacher's, about this process's share.
        shares: for each kind of token and each of the teacher's rows, (T,) on the CPU, the sum of the weights of the
            pairs that learn from it; of this process's share.
    """

    total: Tensor
    cls: Tensor
    patch: Tensor
    koleo: Tensor
    num_patch_pairs: int
    answer: Answer
    shares: dict[str, Tensor]

    @classmethod
    def of(cls, parts: Sequence[PartLoss], num_patch_pairs: int, answer: Answer) -> "LossTerms":
        """Put the parts of a batch together, those of all processes."""
        kinds = list(parts[0].sums)
        shares = {kind: torch.cat([part.shares[kind] for part in parts]) for kind in kinds}
        rows = [torch.stack([part.total.detach(), part.koleo, *part.sums.values()]) for part in parts]
        weights = torch.stack([shares[kind].sum() for kind in kinds]).to(rows[0])
        total, koleo, *rest = ranks.summed(torch.cat([_sum(rows), weights])).unbind()
        means = {
            kind: of_kind / weight.clamp(min=1e-12)
            for kind, of_kind, weight in zip(kinds, rest[: len(kinds)], rest[len(kinds) :], strict=True)
        }
        patch = means.get("patch", torch.zeros_like(total))
        return cls(total, means["cls"], patch, koleo, num_patch_pairs, answer, shares)


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


class Trainer:
    """Networks and optimizer on their device, and the training step.

    With several processes each takes its share of a batch, and every method is for all of them to call.
    """

    def __init__(self, networks: StudentTeacher, *, device: str, precision: str, clock: Stages = UNTIMED) -> None:
        """Move the networks to the device and set up AdamW.

        Args:
            networks: with the configuration that they were built from.
            device: cpu, cuda or mps; cuda:N for the GPU of that number.
            precision: fp32 or bf16.
            clock: told which stage of a step is going on.

        Raises:
            ConfigError: the batch cannot be shared out among processes, or the strategy is not for so many.
        """
        self.networks, self.config, self._clock = networks, networks.config, clock
        if device == "cpu" and precision == "bf16":
            for network in (networks.student, networks.teacher):
                use_plain_attention(network.backbone)
        recompute_activations(networks.student.backbone)
        if self.config.train.checkpoint_activations:
            recompute_blocks(networks.student.backbone)
        self._drop_rates = [branch.rate for branch in dropped_branches(networks.student)]
        engine = Engine(self.config, device=device, precision=precision)
        self.fabric = engine.fabric
        self._student = engine.set_up_student(networks.student)
        engine.set_up_teacher(networks.teacher)
        networks.to(engine.device)
        # Of the parameters as they are now; sharing them out has made others of them.
        decayed, free = weight_decay_groups(networks.student)
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, fused=device != "mps")
        self._fabric_optimizer: Any = self.fabric.setup_optimizers(self.optimizer)
        self._student.train()
        # A GPU's memory is kept by torch as it is.
        on_cpu = engine.device.type == "cpu"
        self._kept = [Workspace() if on_cpu else None for _ in range(self.config.train.accumulate)]
        self._settings = view_settings(self.config.photometric, self.config.model.patch_px)

    def step(self, decoded: Sequence[ViewGroup], keys: SampleKeys, values: StepValues) -> Outcome:
        """Train on a batch; leave everything as it was where the loss or its gradients are not finite.

        Args:
            decoded: the views of the batch, or of this process's share of it, uint8.
            keys: its samples.
            values: scheduled for this step.
        """
        with self._clock.stage("loss"):
            terms = self.losses(decoded, keys, values)
        with self._clock.stage("update"):
            return self.update(terms, values)

    def losses(self, decoded: Sequence[ViewGroup], keys: SampleKeys, values: StepValues) -> LossTerms:
        """Augment the views of a batch, compute their loss and add its gradients to those of the student.

        With `train.accumulate` the batch goes through the student in so many parts; the sum of their gradients is that
        of the whole, since each pair has its weight in the whole.
        """
        num_parts = self.config.train.accumulate
        cuts = list(_cut(decoded, keys, num_parts))
        plans = [plan(groups, self.config) for groups, _ in cuts]
        num_pairs = ranks.summed(total_pairs(plans))
        with self._clock.stage("augmenting"):
            views = [self._prepared(*cut, workspace) for cut, workspace in zip(cuts, self._kept, strict=True)]
        factors = [draw_factors(self._drop_rates, *cut, seed=self.config.train.seed) for cut in cuts]
        with self.fabric.autocast():
            answer = self.networks.answer(
                [view.teacher for view in views], values.teacher_temperature, clock=self._clock
            )
        parts = []
        for number, (view, of_part, teacher, of_cut) in enumerate(
            zip(views, plans, answer.parts, factors, strict=True)
        ):
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
                        factors=of_cut,
                        clock=self._clock,
                    )
                # The gradients of processes are averaged, and their losses are shares of a sum.
                with self._clock.stage("backward"):
                    self.fabric.backward(part.total * ranks.world_size())
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
        """All that the next step depends on, besides the data; what is shared out among processes, for the main one."""
        return {
            "config": self.config.model_dump(mode="json"),
            "student": whole(self.networks.student.state_dict()),
            "teacher": whole(self.networks.teacher.state_dict()),
            "centers": self.networks.centers,
            "optimizer": whole(self.optimizer.state_dict()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned, with however many processes.

        Raises:
            RuntimeError, ValueError, KeyError: it is of other networks.
        """
        networks = self.networks
        networks.student.load_state_dict(cut_like(state["student"], networks.student))
        networks.teacher.load_state_dict(cut_like(state["teacher"], networks.teacher))
        self.optimizer.load_state_dict(cut_optimizer_state(state["optimizer"], self.optimizer))
        networks.centers = {name: state["centers"][name].to(center.device) for name, center in networks.centers.items()}

    def prepared(self, decoded: Sequence[ViewGroup], keys: SampleKeys) -> BatchViews:
        """The views of these samples as the networks see them."""
        return self._prepared(decoded, keys, None)

    def _prepared(self, decoded: Sequence[ViewGroup], keys: SampleKeys, workspace: Workspace | None) -> BatchViews:
        return prepare_views(
            decoded,
            keys,
            self._settings,
            seed=self.config.train.seed,
            device=self.fabric.device,
            teacher_patch_probability=self.config.photometric.teacher_patch_probability,
            clock=self._clock,
            workspace=workspace,
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
