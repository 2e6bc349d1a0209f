"""The training step as DINO (Caron et al., 2021) and the release of PW-Self (arXiv 2310.18651) are written.

In float32, with attention as two products and a softmax, the logits of every token of every view, each pair of views by
itself, and loops over parameters.
"""

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn.functional import log_softmax, softmax

from patchssl.backbones.vit import use_plain_attention
from patchssl.matching import MATCHINGS
from patchssl.network import Network
from patchssl.step_values import StepValues
from patchssl.stochastic_depth import DroppedBranch
from patchssl.structs import BatchViews, Boxes, ViewGroup
from patchssl.student_teacher import StudentTeacher
from patchssl.updates import weight_decay_groups


@dataclass(frozen=True)
class TokenPairs:
    """The tokens that one view of the student has in common with one of the teacher; token 0 is the class token.

    Attributes:
        group: the group of the student's view.
        view: the student's view within it.
        teacher_view: among the global views.
        image: (P,) of the batch.
        student: (P,) tokens of the student's view.
        teacher: (P,) tokens of the teacher's view.
    """

    group: int
    view: int
    teacher_view: int
    image: Tensor
    student: Tensor
    teacher: Tensor


class PlainForm:
    """One head for all tokens, loss: CLS mean + patch_weight * patch mean, gradients clipped tensor by tensor."""

    def __init__(self, networks: StudentTeacher, views: BatchViews, values: StepValues) -> None:
        """Train the weights of these networks from their centres on, on the same views in every step.

        Raises:
            ValueError: the configuration asks for something else than what this form computes.
        """
        config = networks.config
        if not config.model.shared_head or config.loss.average != "terms" or config.loss.center != "kind":
            raise ValueError("the plain form knows one shared head, average: terms and center: kind alone")
        self.config, self.views, self.values = config, views, values
        self.student, self.teacher = networks.student, networks.teacher
        for network in (self.student, self.teacher):
            use_plain_attention(network.backbone)
        _draw_while_running(self.student)
        self.student.train()
        self.centers = torch.cat([networks.centers["cls"], networks.centers["patch"]])  # (2, K)
        decayed, free = weight_decay_groups(self.student)
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups)

    def step(self) -> float:
        """Train for one step and return its loss."""
        loss, teacher = self.losses()
        total = loss.item()
        self.update(loss, teacher)
        return total

    def losses(self) -> tuple[Tensor, Tensor]:
        """The loss, and the teacher's logits (B, T, 1 + N, K), in the order of DINO's loss."""
        values = self.values
        # View by view, as they are cut apart there: the gradient of a choice is as large as what is chosen from.
        students = [
            (_logits(self.student, group.pixels) / self.config.loss.student_temperature).unbind(1)
            for group in self.views.student
        ]
        with torch.no_grad():
            teacher = _logits(self.teacher, self.views.teacher.pixels)
        center = torch.cat([self.centers[:1], self.centers[1:].expand(teacher.shape[2] - 1, -1)])  # (1 + N, K)
        targets = softmax((teacher - center) / values.teacher_temperature, dim=-1).detach()
        pairs = self._token_pairs()
        num_patches = sum(int((pair.student > 0).sum()) for pair in pairs)
        num_cls = sum(int((pair.student == 0).sum()) for pair in pairs)
        weights = torch.tensor([1 / num_cls, values.patch_weight / max(1, num_patches)], device=teacher.device)
        total = torch.zeros((), device=teacher.device)
        for pair in pairs:
            target = targets[pair.image, pair.teacher_view, pair.teacher]  # (P, K)
            ours = students[pair.group][pair.view][pair.image, pair.student]
            cross_entropy = torch.sum(-target * log_softmax(ours, dim=-1), dim=-1)  # (P,)
            total = total + (weights[(pair.student > 0).long()] * cross_entropy).sum()
        return total, teacher

    def update(self, loss: Tensor, teacher: Tensor) -> None:
        """Move student, centres and teacher by one step."""
        train, values = self.config.train, self.values
        decayed, free = self.optimizer.param_groups
        decayed.update(lr=values.learning_rate, weight_decay=values.weight_decay)
        free.update(lr=values.learning_rate)
        loss.backward()
        if train.clip_gradient is not None:
            _clip_each(self.student, train.clip_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            means = torch.stack([teacher[:, :, 0].mean(dim=(0, 1)), teacher[:, :, 1:].mean(dim=(0, 1, 2))])  # (2, K)
            momentum = self.config.loss.center_momentum
            self.centers = self.centers * momentum + means * (1 - momentum)
            for theirs, ours in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                theirs.mul_(values.momentum).add_((1 - values.momentum) * ours)

    def _token_pairs(self) -> list[TokenPairs]:
        """Those of every teacher view with every other view."""
        teacher = self.views.teacher
        num_images, num_teacher_views = teacher.pixels.shape[:2]
        match, grid = MATCHINGS[self.config.loss.matching], self._grid(teacher)
        images = torch.arange(num_images)
        cls = torch.zeros_like(images)
        pairs = []
        for number, group in enumerate(self.views.student):
            found = match(_beside(group.boxes, 2), self._grid(group), _beside(teacher.boxes, 1), grid)
            for q in range(num_teacher_views):
                for view in range(group.num_views):
                    if number == 0 and view == q:
                        continue
                    image, patch = found.mask[:, view, q].nonzero(as_tuple=True)
                    partner = found.index[image, view, q, patch]
                    ids = [torch.cat(both) for both in ((images, image), (cls, 1 + patch), (cls, 1 + partner))]
                    pairs.append(TokenPairs(number, view, q, *(part.to(teacher.pixels.device) for part in ids)))
        return pairs

    def _grid(self, group: ViewGroup) -> tuple[int, int]:
        side = group.side_px // self.config.model.patch_px
        return side, side


def _logits(network: Network, pixels: Tensor) -> Tensor:
    """Those of all tokens of a group of views: (B, V, 1 + N, K)."""
    tokens = network.backbone.forward_features(pixels.flatten(0, 1))  # (B * V, 1 + N, D)
    logits: Tensor = network.cls_head(tokens) @ network.cls_head.last_layer().T
    logits = logits.unflatten(0, pixels.shape[:2])
    return logits


def _draw_while_running(network: nn.Module) -> None:
    """Timm's own stochastic depth, which draws on PyTorch's generator in each forward pass."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DroppedBranch):
                setattr(module, name, DropPath(child.rate))


def _clip_each(network: nn.Module, largest_norm: float) -> None:
    for parameter in network.parameters():
        if parameter.grad is not None:
            scale = largest_norm / (parameter.grad.norm(2) + 1e-6)
            if scale < 1:
                parameter.grad.mul_(scale)


def _beside(boxes: Boxes, dim: int) -> Boxes:
    return Boxes(boxes.corners.unsqueeze(dim), boxes.flipped.unsqueeze(dim))
