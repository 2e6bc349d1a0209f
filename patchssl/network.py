"""A backbone with its projection heads: pixels → tokens → projections."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchssl.backbones.vit import build_vit, vit_tokens
from patchssl.config import Config
from patchssl.heads import ProjectionHead
from patchssl.measures import spread_rows
from patchssl.stage_clock import UNTIMED, Stages
from patchssl.stochastic_depth import dropped_branches, dropping, hand_in_factors
from patchssl.structs import Projections

# Of a batch's features at most so many are handed on to measure their rank.
MAX_FEATURES = 512


@dataclass(frozen=True)
class Projected:
    """A network's answer to all views.

    Attributes:
        features: (B * V, D) class tokens of the global views, before the head.
        patch_features: (M, D) patches of the global views that stand for all of them, before the head; a copy without
            gradients.
        cls: class tokens of all views.
        patch: patches; None where none are distilled.
    """

    features: Tensor
    patch_features: Tensor
    cls: Projections
    patch: Projections | None

    @classmethod
    def of(cls, outputs: tuple[Tensor, ...]) -> "Projected":
        """From what a Network returns."""
        features, patch_features, *rest = outputs
        return cls(features, patch_features, Projections(*rest[:2]), Projections(*rest[2:]) if rest[2:] else None)

    @classmethod
    def joined(cls, parts: Sequence["Projected"]) -> "Projected":
        """The answer to all views of parts of a batch, by one network, whose prototypes are held once."""
        if len(parts) == 1:
            return parts[0]

        def together(of: Sequence[Projections]) -> Projections:
            return Projections(torch.cat([part.rows for part in of]), of[0].prototypes)

        patches = [part.patch for part in parts if part.patch is not None]
        return cls(
            torch.cat([part.features for part in parts]),
            torch.cat([part.patch_features for part in parts]),
            together([part.cls for part in parts]),
            together(patches) if patches else None,
        )

    def split(self, num_parts: int) -> list["Projected"]:
        """The answers to so many equal parts of a batch, sharing this one's memory."""

        def apart(whole: Projections) -> list[Projections]:
            return [Projections(rows, whole.prototypes) for rows in whole.rows.chunk(num_parts)]

        patches = [None] * num_parts if self.patch is None else apart(self.patch)
        features = (rows.chunk(num_parts) for rows in (self.features, self.patch_features))
        return [Projected(*part) for part in zip(*features, apart(self.cls), patches, strict=True)]

    def kinds(self) -> dict[str, Projections]:
        """By the name of the kind of token: "cls" and, where patches are distilled, "patch"."""
        return {"cls": self.cls} | ({} if self.patch is None else {"patch": self.patch})


class Network(nn.Module):
    """A backbone with a projection head for the class token and one for patches."""

    def __init__(self, config: Config, *, drop_path: float) -> None:
        """Build with fresh weights; drop_path is the rate of stochastic depth."""
        super().__init__()
        model = config.model
        self.backbone = build_vit(model, config.views.global_size, drop_path=drop_path)
        hand_in_factors(self.backbone)
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

    def forward(
        self,
        pixels: Sequence[Tensor],
        kept: Sequence[Tensor] | None = None,
        factors: Sequence[Tensor] | None = None,
        clock: Stages = UNTIMED,
    ) -> tuple[Tensor, ...]:
        """Project class tokens and patches.

        Args:
            pixels: for each group (B * V, 3, side, side), normalised.
            kept: for each group, the rows of (B * V * N) patches that are wanted; None for all.
            factors: for each group (B * V, L), by which the L residual branches that are dropped at times are scaled;
                None where there are none, or the network is not trained.
            clock: told when the backbone is at work.

        Returns:
            Class tokens of the first group; a sample of its patches, without gradients; rows and prototypes of CLS and,
            unless patches are left out, of patches, rows in the order of the groups. As plain tensors, since precision
            and device wrappers handle those.
        """
        cls, patches, branches = [], [], dropped_branches(self.backbone)
        for group, images in enumerate(pixels):
            scales = [None] * len(branches) if factors is None else factors[group].unbind(1)
            with clock.stage("forward"), dropping(branches, scales):
                tokens = vit_tokens(self.backbone, images)
            cls.append(tokens.cls)
            if not group:
                sample = _sample(tokens.patches.detach().flatten(0, 1))
            if self.with_patches:
                flat = tokens.patches.flatten(0, 1)  # (B * V * N, D)
                patches.append(flat if kept is None else flat[kept[group]])
        prototypes = self.cls_head.last_layer()
        outputs = (cls[0].clone(), sample, self.cls_head(torch.cat(cls)), prototypes)
        if not self.with_patches:
            return outputs
        if self.patch_head is None:
            return (*outputs, self.cls_head(torch.cat(patches)), prototypes)
        return (*outputs, self.patch_head(torch.cat(patches)), self.patch_head.last_layer())

    def prototype_parameters(self) -> list[nn.Parameter]:
        """The parameters of the last layers, which stay as they are in the first steps."""
        heads = [self.cls_head] if self.patch_head is None else [self.cls_head, self.patch_head]
        return [parameter for head in heads for parameter in head.last_layer.parameters()]


def _sample(rows: Tensor) -> Tensor:
    """A few of the rows (M, D) that stand for all; a copy, which does not keep these in memory."""
    return rows[spread_rows(len(rows), MAX_FEATURES, rows.device)]
