"""Student and teacher: views → projections → loss, and the teacher's explicit step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchssl.config import Config
from patchssl.koleo import koleo
from patchssl.loss import paired_cross_entropy
from patchssl.matching import MATCHINGS
from patchssl.network import Network, Projected
from patchssl.pairing import cls_pairs, flat_weights, mean_weights, patch_pairs
from patchssl.structs import BatchViews, Boxes, Pairs, PatchMatch, ViewGroup
from patchssl.targets import Targets, mean_logits, moved_center, sinkhorn_center
from patchssl.workspace import MIB, Workspace


@dataclass(frozen=True)
class LossTerms:
    """The loss of a step and what it is made of.

    Attributes:
        total: what is minimised.
        cls: mean over the pairs of class tokens.
        patch: mean over the pairs of patches; 0 where there are none.
        koleo: mean over the global views of how close together the class tokens of a batch are; 0 where not asked for.
        num_patch_pairs: how many pairs of patches there are.
        teacher: the teacher's answer.
        centers: what was taken from its logits, (C, K) for each kind of token.
    """

    total: Tensor
    cls: Tensor
    patch: Tensor
    koleo: Tensor
    num_patch_pairs: int
    teacher: Projected
    centers: dict[str, Tensor]


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

    def losses(
        self,
        views: BatchViews,
        forward: Callable[..., tuple[Tensor, ...]],
        *,
        teacher_temperature: float,
        patch_weight: float,
    ) -> LossTerms:
        """The loss of a batch.

        Args:
            views: on the networks' device.
            forward: the student, or what wraps it.
            teacher_temperature: of this step.
            patch_weight: of this step.
        """
        loss, groups = self.config.loss, views.student
        pixels = [group.pixels.flatten(0, 1) for group in groups]
        kept, pairs = self._pairs(groups)
        with torch.no_grad():
            teacher = Projected.of(self.teacher([views.teacher.pixels.flatten(0, 1)]))
            centers = self._centers(teacher, teacher_temperature)
        student = Projected.of(forward(pixels, kept))
        weights = self._weights(groups, pairs)
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
        shares = {kind: max(float(part.sum()), 1e-12) for kind, part in weights.items()}
        spread = self._spread(student.features, len(groups[0].pixels))
        total = sums["cls"] + loss.koleo_weight * spread
        if "patch" in sums:
            total = total + sums["patch"] * (1.0 if loss.average == "flat" else patch_weight)
        none = torch.zeros_like(total).detach()
        return LossTerms(
            total=total,
            cls=sums["cls"].detach() / shares["cls"],
            patch=sums["patch"].detach() / shares["patch"] if "patch" in sums else none,
            koleo=spread.detach(),
            num_patch_pairs=len(pairs.get("patch", ())),
            teacher=teacher,
            centers=centers,
        )

    @torch.no_grad()
    def teacher_entropy(self, terms: LossTerms, temperature: float) -> dict[str, float]:
        """Mean entropy in nats of the teacher's distributions of a step, for each kind of token."""
        return {
            kind: Targets.of(rows, center=terms.centers[kind], temperature=temperature).mean_entropy(self.workspace)
            for kind, rows in terms.teacher.kinds().items()
        }

    @torch.no_grad()
    def update_centers(self, terms: LossTerms) -> None:
        """Move the centres towards the mean logits of this step's teacher; Sinkhorn's are kept as they are."""
        if self.config.loss.center == "sinkhorn":
            self.centers = terms.centers
            return
        for name, rows in terms.teacher.kinds().items():
            center = self.centers[name]
            self.centers[name] = moved_center(center, mean_logits(rows, len(center)), self.config.loss.center_momentum)

    @torch.no_grad()
    def ema_step(self, momentum: float) -> None:
        """Teacher = momentum * teacher + (1 - momentum) * student, over all parameters in one fused operation."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)

    def _pairs(self, groups: Sequence[ViewGroup]) -> tuple[list[Tensor] | None, dict[str, Pairs]]:
        """The patches that are wanted, on the device, and who learns from whom, for each kind of token."""
        num_images, num_teacher_views = groups[0].pixels.shape[:2]
        tokens = cls_pairs(num_images, num_teacher_views, [group.num_views for group in groups])
        if not self.teacher.with_patches:
            return None, {"cls": tokens}
        height, width = self._grid(groups[0])
        kept, patches = patch_pairs(self._matches(groups), height * width)
        device = groups[0].pixels.device
        return [rows.to(device, non_blocking=True) for rows in kept], {"cls": tokens, "patch": patches}

    def _weights(self, groups: Sequence[ViewGroup], pairs: dict[str, Pairs]) -> dict[str, Tensor]:
        """The weight of each pair: in the mean over its kind, or in the authors' mean over all."""
        if self.config.loss.average == "flat":
            num_view_pairs = groups[0].num_views * (sum(group.num_views for group in groups) - 1)
            return dict(zip(pairs, flat_weights(pairs["cls"], pairs["patch"], num_view_pairs), strict=True))
        return {kind: mean_weights(of_kind, 1.0) for kind, of_kind in pairs.items()}

    def _spread(self, features: Tensor, num_images: int) -> Tensor:
        """The mean over the global views of the KoLeo term of their class tokens (B * V, D)."""
        if not self.config.loss.koleo_weight:
            return features.new_zeros((), dtype=torch.float32)
        views = features.unflatten(0, (num_images, -1)).unbind(1)  # V times (B, D)
        return torch.stack([koleo(view) for view in views]).mean()

    def _centers(self, teacher: Projected, temperature: float) -> dict[str, Tensor]:
        """What is taken from the teacher's logits in this step."""
        if self.config.loss.center != "sinkhorn":
            return dict(self.centers)
        num_iterations = self.config.loss.sinkhorn_iterations
        return {
            name: sinkhorn_center(
                rows, temperature=temperature, num_iterations=num_iterations, workspace=self.workspace
            )
            for name, rows in teacher.kinds().items()
        }

    def _matches(self, groups: Sequence[ViewGroup]) -> list[PatchMatch]:
        match = MATCHINGS[self.config.loss.matching]
        teacher = groups[0]
        return [
            match(_paired(group.boxes, 2), self._grid(group), _paired(teacher.boxes, 1), self._grid(teacher))
            for group in groups
        ]

    def _grid(self, group: ViewGroup) -> tuple[int, int]:
        side = group.side_px // self.config.model.patch_px
        return side, side


def _paired(boxes: Boxes, dim: int) -> Boxes:
    """Insert a dimension of 1, so that (B, V, 1) and (B, 1, T) broadcast to all pairs of views."""
    return Boxes(boxes.corners.unsqueeze(dim), boxes.flipped.unsqueeze(dim))
