"""Student and teacher: views → tokens → projections → loss, and the teacher's explicit step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchssl.backbones.vit import build_vit, vit_tokens
from patchssl.config import Config
from patchssl.heads import ProjectionHead
from patchssl.loss import (
    entropy,
    mean_logits,
    moved_center,
    paired_cross_entropy,
    sinkhorn_center,
    teacher_probabilities,
)
from patchssl.matching import MATCHINGS
from patchssl.pairing import cls_pairs, flat_weights, mean_weights, patch_pairs
from patchssl.structs import BatchViews, Boxes, Pairs, PatchMatch, Projections, ViewGroup


@dataclass(frozen=True)
class Projected:
    """A network's answer to all views; patch is None where no patches are distilled."""

    cls: Projections
    patch: Projections | None

    @classmethod
    def of(cls, outputs: tuple[Tensor, ...]) -> "Projected":
        """From what a Network returns."""
        return cls(Projections(*outputs[:2]), Projections(*outputs[2:]) if outputs[2:] else None)

    def kinds(self) -> dict[str, Projections]:
        """By the name of the kind of token: "cls" and, where patches are distilled, "patch"."""
        return {"cls": self.cls} | ({} if self.patch is None else {"patch": self.patch})


@dataclass(frozen=True)
class LossTerms:
    """The loss of a step and what it is made of.

    Attributes:
        total: what is minimised.
        cls: mean over the pairs of class tokens.
        patch: mean over the pairs of patches; 0 where there are none.
        num_patch_pairs: how many pairs of patches there are.
        teacher: the teacher's answer.
        centers: what was taken from its logits, (C, K) for each kind of token.
    """

    total: Tensor
    cls: Tensor
    patch: Tensor
    num_patch_pairs: int
    teacher: Projected
    centers: dict[str, Tensor]

    @torch.no_grad()
    def teacher_entropy(self, temperature: float) -> dict[str, float]:
        """Mean entropy in nats of the teacher's distributions, for each kind of token."""
        return {
            name: float(entropy(teacher_probabilities(rows, center=self.centers[name], temperature=temperature)))
            for name, rows in self.teacher.kinds().items()
        }


class Network(nn.Module):
    """A backbone with a projection head for the class token and one for patches."""

    def __init__(self, config: Config, *, drop_path: float) -> None:
        """Build with fresh weights; drop_path is the rate of stochastic depth."""
        super().__init__()
        model = config.model
        self.backbone = build_vit(model, config.views.global_size, drop_path=drop_path)
        width = self.backbone.num_features

        def head(num_prototypes: int) -> ProjectionHead:
            return ProjectionHead(
                width,
                num_prototypes,
                hidden=model.head_hidden,
                bottleneck=model.head_bottleneck,
                fixed_norm=model.norm_last_layer,
            )

        self.cls_head = head(model.cls_prototypes)
        self.with_patches = config.loss.patch_weight > 0
        separate = self.with_patches and not model.shared_head
        self.patch_head = head(model.patch_prototypes) if separate else None

    def forward(self, pixels: Sequence[Tensor], kept: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """Project class tokens and patches.

        Args:
            pixels: for each group (B * V, 3, side, side), normalised.
            kept: for each group, the rows of (B * V * N) patches that are wanted; None for all.

        Returns:
            Rows and prototypes of CLS and, unless patches are left out, of patches; rows in the order of the groups.
            As plain tensors, since precision and device wrappers of the network handle those.
        """
        cls, patches = [], []
        for group, images in enumerate(pixels):
            tokens = vit_tokens(self.backbone, images)
            cls.append(tokens.cls)
            if self.with_patches:
                flat = tokens.patches.flatten(0, 1)  # (B * V * N, D)
                patches.append(flat if kept is None else flat[kept[group]])
        outputs = (self.cls_head(torch.cat(cls)), self.cls_head.last_layer())
        if not self.with_patches:
            return outputs
        patch_head = self.patch_head or self.cls_head
        return (*outputs, patch_head(torch.cat(patches)), patch_head.last_layer())

    def prototype_parameters(self) -> list[nn.Parameter]:
        """The parameters of the last layers, which stay as they are in the first steps."""
        heads = [self.cls_head] if self.patch_head is None else [self.cls_head, self.patch_head]
        return [parameter for head in heads for parameter in head.last_layer.parameters()]


class StudentTeacher:
    """Both networks and the centres.

    Attributes:
        student: trained by gradients.
        teacher: an exponential moving average of the student; sees the global views only.
        centers: "cls" and, with patches, "patch": (C, K) each.
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
        device = groups[0].pixels.device
        pixels = [group.pixels.flatten(0, 1) for group in groups]
        num_images, num_teacher_views = groups[0].pixels.shape[:2]
        tokens = cls_pairs(num_images, num_teacher_views, [group.num_views for group in groups])
        kept, patches = None, None
        if self.teacher.with_patches:
            kept, patches = patch_pairs(self._matches(groups), (groups[0].side_px // self.config.model.patch_px) ** 2)
            kept = [rows.to(device) for rows in kept]
        with torch.no_grad():
            teacher = Projected.of(self.teacher([views.teacher.pixels.flatten(0, 1)]))
            centers = self._centers(teacher, teacher_temperature)
        student = Projected.of(forward(pixels, kept))

        def cross_entropy(kind: str, s: Projections, t: Projections, pairs: Pairs, weights: Tensor) -> Tensor:
            moved = Pairs(*(part.to(device) for part in (pairs.student, pairs.teacher, pairs.view_pair)))
            return paired_cross_entropy(
                s,
                t,
                moved,
                weights.to(device),
                center=centers[kind],
                student_temperature=loss.student_temperature,
                teacher_temperature=teacher_temperature,
            )

        if patches is None or student.patch is None or teacher.patch is None:
            cls = cross_entropy("cls", student.cls, teacher.cls, tokens, mean_weights(tokens, 1.0))
            return LossTerms(cls, cls.detach(), torch.zeros_like(cls), 0, teacher, centers)
        if loss.average == "flat":
            num_view_pairs = num_teacher_views * (sum(group.num_views for group in groups) - 1)
            cls_weights, patch_weights = flat_weights(tokens, patches, num_view_pairs)
        else:
            cls_weights, patch_weights = mean_weights(tokens, 1.0), mean_weights(patches, patch_weight)
        cls = cross_entropy("cls", student.cls, teacher.cls, tokens, cls_weights)
        patch = cross_entropy("patch", student.patch, teacher.patch, patches, patch_weights)
        cls_share, patch_share = float(cls_weights.sum()), float(patch_weights.sum())
        return LossTerms(
            cls + patch,
            cls.detach() / cls_share,
            patch.detach() / max(patch_share, 1e-12),
            len(patches),
            teacher,
            centers,
        )

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

    def _centers(self, teacher: Projected, temperature: float) -> dict[str, Tensor]:
        """What is taken from the teacher's logits in this step."""
        if self.config.loss.center != "sinkhorn":
            return dict(self.centers)
        num_iterations = self.config.loss.sinkhorn_iterations
        return {
            name: sinkhorn_center(rows, temperature=temperature, num_iterations=num_iterations)
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


def weight_decay_groups(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters with and without weight decay; biases and 1-D parameters have none, as in DINO."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (free if name.endswith(".bias") or parameter.ndim <= 1 else decayed).append(parameter)
    return decayed, free


def clip_gradients(network: nn.Module, largest_norm: float, *, mode: str) -> Tensor:
    """Scale gradients down to a largest norm and return the norm over all of them before.

    Args:
        network: its gradients are changed in place.
        largest_norm: above 0.
        mode: "global" clips the norm over all tensors; "tensor" clips each tensor by itself (DINO, PW-Self).
    """
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    if mode == "global":
        return nn.utils.clip_grad_norm_(parameters, largest_norm)
    norms = [nn.utils.clip_grad_norm_([parameter], largest_norm) for parameter in parameters]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
