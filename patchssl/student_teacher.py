"""Student and teacher: views → projections → loss, and the teacher's explicit step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchssl import ranks
from patchssl.config import Config
from patchssl.koleo import koleo
from patchssl.loss import paired_cross_entropy
from patchssl.measures import TargetSums
from patchssl.network import Network, Projected
from patchssl.shards import local
from patchssl.stage_clock import UNTIMED, Stages
from patchssl.structs import Pairs, ViewGroup
from patchssl.targets import Targets, mean_logits, moved_center, sinkhorn_center
from patchssl.workspace import MIB, Workspace


@dataclass(frozen=True)
class Answer:
    """What the teacher says of a batch, or of this process's share of it.

    Attributes:
        parts: its projections of each part of the batch.
        whole: those of all of it.
        centers: what is taken from its logits, (C, K) for each kind of token; the same for all processes.
    """

    parts: tuple[Projected, ...]
    whole: Projected
    centers: dict[str, Tensor]


@dataclass(frozen=True)
class PartLoss:
    """The share of a part of a batch, which may be all of it, in the batch's loss.

    Of all parts and processes together, each is a sum.

    Attributes:
        total: what is minimised.
        sums: for each kind of token, the sum of weight times cross-entropy over its pairs; without gradients.
        shares: for each kind of token and each of the T rows of the teacher, (T,) on the CPU, the sum of the weights of
            the pairs that learn from it.
        koleo: the KoLeo term without its weight; 0 where not asked for.
    """

    total: Tensor
    sums: dict[str, Tensor]
    shares: dict[str, Tensor]
    koleo: Tensor


class StudentTeacher:
    """Both networks and the centres.

    Attributes:
        student: trained by gradients.
        teacher: an exponential moving average of the student; sees the global views only.
        centers: "cls" and, with patches, "patch": (C, K) each.
        workspace: memory of the loss, kept from step to step.
    """

    def __init__(self, config: Config) -> None:
        """Build both with equal fresh weights."""
        self.config = config
        self.student = Network(config, drop_path=config.model.drop_path)
        self.teacher = Network(config, drop_path=0.0)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(requires_grad=False)
        self.teacher.eval()
        side = config.views.global_size // config.model.patch_px
        positions = side * side if config.loss.center == "position" else 1
        self.centers = {"cls": torch.zeros(1, config.model.cls_prototypes)}
        if self.teacher.with_patches:
            self.centers["patch"] = torch.zeros(positions, config.model.patch_prototypes)
        self.workspace = Workspace(config.loss.chunk_mib * MIB)

    def to(self, device: torch.device) -> None:
        """Move the teacher and the centres; the student moves with its optimizer."""
        self.teacher.to(device)
        self.centers = {name: center.to(device) for name, center in self.centers.items()}

    @torch.no_grad()
    def answer(self, parts: Sequence[ViewGroup], teacher_temperature: float, *, clock: Stages = UNTIMED) -> Answer:
        """Ask the teacher about a batch.

        Args:
            parts: what it sees of each part of the batch; they are of one size.
            teacher_temperature: of this step.
            clock: told when the backbone is at work.
        """
        whole = Projected.joined(
            [Projected.of(self.teacher([part.pixels.flatten(0, 1)], clock=clock)) for part in parts]
        )
        return Answer(tuple(whole.split(len(parts))), whole, self._centers(whole, teacher_temperature))

    def part_loss(
        self,
        groups: Sequence[ViewGroup],
        forward: Callable[..., tuple[Tensor, ...]],
        *,
        kept: Sequence[Tensor] | None,
        pairs: dict[str, Pairs],
        weights: dict[str, Tensor],
        teacher: Projected,
        centers: dict[str, Tensor],
        teacher_temperature: float,
        patch_weight: float,
        part: float = 1.0,
        factors: Sequence[Tensor] | None = None,
        clock: Stages = UNTIMED,
    ) -> PartLoss:
        """The loss of a batch, or what a part of it adds to that.

        Args:
            groups: what the student sees, on the networks' device.
            forward: the student, or what wraps it.
            kept: the patches that are wanted, and
            pairs: who learns from whom, as a plan has them.
            weights: of the pairs, for each kind of token.
            teacher: its projections of these images.
            centers: of its answer about the whole batch.
            teacher_temperature: of this step.
            patch_weight: of this step.
            part: this part's share in the images of the batch.
            factors: of the student's residual branches, as draw_factors gives them.
            clock: told when the backbone is at work, and when something is moved.
        """
        loss, device = self.config.loss, groups[0].pixels.device
        pixels = [group.pixels.flatten(0, 1) for group in groups]
        with clock.stage("moving"):
            there = _moved(kept, device), _moved(factors, device)
        student = Projected.of(forward(pixels, *there, clock=clock))
        sums = {
            kind: paired_cross_entropy(
                rows,
                teacher.kinds()[kind],
                pairs[kind],
                weights[kind],
                center=centers[kind],
                student_temperature=loss.student_temperature,
                teacher_temperature=teacher_temperature,
                workspace=self.workspace,
            )
            for kind, rows in student.kinds().items()
        }
        spread = self._spread(student.features, len(groups[0].pixels)) * part
        total = sums["cls"] + loss.koleo_weight * spread
        if "patch" in sums:
            total = total + sums["patch"] * (1.0 if loss.average == "flat" else patch_weight)
        return PartLoss(
            total=total,
            sums={kind: value.detach() for kind, value in sums.items()},
            shares={
                kind: torch.bincount(pairs[kind].teacher, weights[kind], minlength=len(rows.rows))
                for kind, rows in teacher.kinds().items()
            },
            koleo=spread.detach(),
        )

    @torch.no_grad()
    def target_sums(self, answer: Answer, weights: Mapping[str, Tensor], temperature: float) -> dict[str, TargetSums]:
        """What is measured of the teacher's distributions of a step, for each kind of token, in all processes.

        Args:
            answer: the teacher's, about this process's share.
            weights: (T,) for each kind and each of its rows, the sum of the weights of the pairs that learn from it.
            temperature: of this step.
        """
        return {
            kind: Targets.of(rows, center=answer.centers[kind], temperature=temperature)
            .sums(weights[kind], self.workspace)
            .reduced(ranks.summed)
            for kind, rows in answer.whole.kinds().items()
        }

    @torch.no_grad()
    def update_centers(self, answer: Answer) -> None:
        """Move the centres towards the mean logits of this step's teacher, over the rows of all processes.

        Sinkhorn's are kept as they are.
        """
        if self.config.loss.center == "sinkhorn":
            self.centers = answer.centers
            return
        for name, rows in answer.whole.kinds().items():
            center = self.centers[name]
            mean = ranks.averaged(mean_logits(rows, len(center)))
            self.centers[name] = moved_center(center, mean, self.config.loss.center_momentum)

    @torch.no_grad()
    def ema_step(self, momentum: float) -> None:
        """Teacher = momentum * teacher + (1 - momentum) * student, over all parameters in one fused operation."""
        teacher, student = ([local(weight) for weight in net.parameters()] for net in (self.teacher, self.student))
        torch._foreach_lerp_(teacher, student, 1 - momentum)

    def _spread(self, features: Tensor, num_images: int) -> Tensor:
        """This process's share in the mean over the global views of the KoLeo term of their class tokens (B * V, D)."""
        if not self.config.loss.koleo_weight:
            return features.new_zeros((), dtype=torch.float32)
        views = features.unflatten(0, (num_images, -1)).unbind(1)  # V times (B, D)
        return torch.stack([koleo(ranks.gathered(view)) for view in views]).mean() / ranks.world_size()

    def _centers(self, teacher: Projected, temperature: float) -> dict[str, Tensor]:
        """What is taken from the teacher's logits in this step."""
        if self.config.loss.center != "sinkhorn":
            return dict(self.centers)
        num_iterations = self.config.loss.sinkhorn_iterations
        return {
            name: sinkhorn_center(
                rows,
                temperature=temperature,
                num_iterations=num_iterations,
                workspace=self.workspace,
                over_all=ranks.log_summed_exp,
            )
            for name, rows in teacher.kinds().items()
        }


def _moved(tensors: Sequence[Tensor] | None, device: torch.device) -> list[Tensor] | None:
    return None if tensors is None else [tensor.to(device, non_blocking=True) for tensor in tensors]
