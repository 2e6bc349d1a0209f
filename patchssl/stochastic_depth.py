"""Stochastic depth (Huang et al., 2016) that follows from the samples, and not from who computes what first.

Whether a residual branch is kept for a view is a function of seed, epoch, sample, view and branch; so order and size of
batches, their parts, and the number of processes cannot change it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from patchssl.draws import uniforms
from patchssl.structs import SampleKeys, ViewGroup

# Streams of view v's geometry are v, of its photometric parameters (1 << 16) + v; those of its branches begin here.
_FIRST_STREAM = 1 << 17


class DroppedBranch(nn.Module):
    """Scales a residual branch, for each image of a batch, by a factor that is handed in before the forward pass.

    It has no weights, and while it is not trained it does nothing.

    Attributes:
        rate: how often the branch is dropped.
        factors: (B,) of the forward pass that is going on, 0 or 1 / (1 - rate); None between forward passes.
    """

    def __init__(self, rate: float) -> None:
        """Drop as often as rate, 0 <= rate < 1, says."""
        super().__init__()
        self.rate = rate
        self.factors: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """Scale a branch (B, ...).

        Raises:
            ValueError: it is trained and nobody said what to drop.
        """
        if not self.training:
            return branch
        if self.factors is None:
            raise ValueError(f"a branch of rate {self.rate:g} is trained without factors; hand them in, or call eval()")
        return branch * self.factors.to(branch.dtype).view(-1, *(1,) * (branch.ndim - 1))

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate:g}"


def hand_in_factors(network: nn.Module) -> None:
    """Let the branches of a timm network be dropped by factors that are handed in; each keeps its rate."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DropPath):
                setattr(module, name, DroppedBranch(child.drop_prob))


def dropped_branches(network: nn.Module) -> tuple[DroppedBranch, ...]:
    """The branches of a network that are dropped at times, in the order of its blocks."""
    return tuple(module for module in network.modules() if isinstance(module, DroppedBranch))


def draw_factors(
    rates: Sequence[float], groups: Sequence[ViewGroup], keys: SampleKeys, *, seed: int
) -> tuple[Tensor, ...] | None:
    """Draw which branches are kept for each view of a batch.

    Args:
        rates: how often each of the L branches is dropped.
        groups: the views, of the B samples; pixels are not looked at.
        keys: of the samples.
        seed: of the run.

    Returns:
        For each group (B * V, L) float32 on the CPU: 0, or 1 / (1 - rate), so that the mean is 1. None where no branch
        is ever dropped; nothing is drawn then.
    """
    if not rates:
        return None
    keep = 1 - torch.tensor(rates)  # (L,)
    factors, first_view = [], 0
    for group in groups:
        views = torch.arange(first_view, first_view + group.num_views)
        epoch, index = (value.repeat_interleave(group.num_views) for value in (keys.epoch, keys.index))
        each = SampleKeys(epoch, index)
        drawn = uniforms(seed, each, _FIRST_STREAM + views.repeat(len(keys)), len(rates))  # (B * V, L)
        factors.append((drawn < keep) / keep)
        first_view += group.num_views
    return tuple(factors)


@contextmanager
def dropping(branches: Sequence[DroppedBranch], factors: Sequence[Tensor | None]) -> Iterator[None]:
    """Scale each of some branches by factors (B,) of its own inside the block."""
    before = [branch.factors for branch in branches]
    for branch, of_branch in zip(branches, factors, strict=True):
        branch.factors = of_branch
    try:
        yield
    finally:
        for branch, earlier in zip(branches, before, strict=True):
            branch.factors = earlier
