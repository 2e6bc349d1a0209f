"""Who learns from whom in a batch, from the boxes of its views alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from patchssl.config import Config
from patchssl.matching import MATCHINGS
from patchssl.pairing import cls_pairs, count_per_view_pair, flat_weights, mean_weights, patch_pairs
from patchssl.structs import Boxes, Pairs, PatchMatch, ViewGroup


@dataclass(frozen=True)
class Plan:
    """Who learns from whom in a batch or a part of it, on the CPU.

    Attributes:
        kept: for each group of views, the rows of (B * V * N) patches that have a partner; None without patches.
        pairs: of rows, for each kind of token.
        num_pairs: (kinds, L) int64: how many pairs there are in each pair of views, in the order of pairs. Summed over
            all parts of a batch it gives the weights.
    """

    kept: tuple[Tensor, ...] | None
    pairs: dict[str, Pairs]
    num_pairs: Tensor

    def weights(self, num_pairs: Tensor, *, average: str) -> dict[str, Tensor]:
        """The weight of each pair of a kind.

        Args:
            num_pairs: (kinds, L) of the whole batch.
            average: "terms", a mean over each kind, or "flat", the authors' mean over all of them.
        """
        if average == "flat":
            return {kind: flat_weights(pairs, num_pairs.sum(dim=0)) for kind, pairs in self.pairs.items()}
        totals = num_pairs.sum(dim=1).tolist()
        return {kind: mean_weights(pairs, num) for (kind, pairs), num in zip(self.pairs.items(), totals, strict=True)}


def plan(groups: Sequence[ViewGroup], config: Config) -> Plan:
    """Pair the class tokens, and the patches unless these are left out, of the views of some images.

    Args:
        groups: the global views, all of which the teacher sees, and unless there are none the local ones. Pixels are
            not looked at.
        config: of the run.
    """
    num_images, num_teacher_views = groups[0].pixels.shape[:2]
    kept, pairs = None, {"cls": cls_pairs(num_images, num_teacher_views, [group.num_views for group in groups])}
    if config.loss.patch_weight > 0:
        height, width = _grid(groups[0], config)
        rows, pairs["patch"] = patch_pairs(_matches(groups, config), height * width)
        kept = tuple(rows)
    num_view_pairs = num_teacher_views * sum(group.num_views for group in groups)
    return Plan(kept, pairs, torch.stack([count_per_view_pair(found, num_view_pairs) for found in pairs.values()]))


def total_pairs(plans: Sequence[Plan]) -> Tensor:
    """(kinds, L) pairs of all parts of a batch."""
    return reduce(torch.add, (part.num_pairs for part in plans))


def _matches(groups: Sequence[ViewGroup], config: Config) -> list[PatchMatch]:
    match = MATCHINGS[config.loss.matching]
    teacher = groups[0]
    return [
        match(_paired(group.boxes, 2), _grid(group, config), _paired(teacher.boxes, 1), _grid(teacher, config))
        for group in groups
    ]


def _grid(group: ViewGroup, config: Config) -> tuple[int, int]:
    side = group.side_px // config.model.patch_px
    return side, side


def _paired(boxes: Boxes, dim: int) -> Boxes:
    """Insert a dimension of 1, so that (B, V, 1) and (B, 1, T) broadcast to all pairs of views."""
    return Boxes(boxes.corners.unsqueeze(dim), boxes.flipped.unsqueeze(dim))
