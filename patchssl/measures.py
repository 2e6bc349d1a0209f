"""What tells whether representations and targets are alive: ranks, prototypes in use, distances from uniform."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# 2 ** 16 divided by the golden ratio: its multiples, modulo 2 ** 16, fall evenly and follow no grid (Knuth, TAOCP 6.4).
_GOLDEN, _WHOLE = 40503, 1 << 16


def spread_rows(num_rows: int, max_rows: int, device: torch.device) -> Tensor:
    """Rows that stand for all of them: one of each of max_rows equal stretches.

    The place within a stretch changes from one to the next, since a fixed step would meet the same few positions of
    every grid of patches. Equal numbers give equal rows.

    Args:
        num_rows: M.
        max_rows: all M rows are taken where there are no more than this.
        device: of the result.

    Returns:
        (min(M, max_rows),) int64, ascending, each once.
    """
    if num_rows <= max_rows:
        return torch.arange(num_rows, device=device)
    number = torch.arange(max_rows, device=device)
    start, end = number * num_rows // max_rows, (number + 1) * num_rows // max_rows
    return start + (end - start) * (number * _GOLDEN % _WHOLE) // _WHOLE


def effective_rank(features: Tensor) -> float:
    """RankMe: exp of the entropy of the singular values, divided by their sum (Garrido et al., ICML 2023, eq. 2).

    1 for features that are multiples of one vector; at most min(M, D), for orthogonal directions of equal strength.
    Features are not centred, so that equal ones have a rank of 1. Where the paper adds 1e-7 to each share, 0 log 0 is
    taken as 0.

    Args:
        features: (M, D), at least one row.

    Returns:
        The rank; 0 if all features are 0, nan if one of them is not finite.

    Raises:
        ValueError: there are none.
    """
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"features of shape {tuple(features.shape)} came; a rank needs (M, D) with M and D above 0")
    features = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    if not bool(features.isfinite().all()):
        return math.nan
    values = torch.linalg.svdvals(features)
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total else 0.0


def perplexity(masses: Tensor) -> float:
    """The exponential of a distribution's entropy: the number of outcomes that a uniform one of equal entropy has.

    Args:
        masses: (K,) not negative, of any sum above 0.

    Raises:
        ValueError: their sum is 0.
    """
    total = masses.sum()
    if not total:
        raise ValueError(f"{len(masses)} masses that sum to 0 are no distribution; give at least one above 0")
    return float(torch.special.entr(masses / total).sum().exp())


def below_uniform(loss: float, num_prototypes: int) -> float:
    """How far a loss lies below ln K, in nats: what the student knows.

    One that calls all K prototypes equally likely has a cross-entropy of ln K, whatever the teacher says; below 0 the
    student is worse than that.
    """
    return math.log(num_prototypes) - loss


@dataclass(frozen=True, slots=True)
class TargetSums:
    """Sums over distributions of a teacher; those of several batches or processes add up.

    Attributes:
        rows: () their number.
        entropy: () the sum of their entropies, in nats.
        weight: () the sum of the weights of the pairs that learn from them.
        weighted_entropy: () the sum of the entropies of those pairs' targets, each times the weight of its pair.
        masses: (K,) the sum of the distributions.
        wins: (K,) int64: of how many it is the largest probability; of equal ones the first.
    """

    rows: Tensor
    entropy: Tensor
    weight: Tensor
    weighted_entropy: Tensor
    masses: Tensor
    wins: Tensor

    def __add__(self, other: "TargetSums") -> "TargetSums":
        return TargetSums(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def reduced(self, add: Callable[[Tensor], Tensor]) -> "TargetSums":
        """The same with what each is a part of: add gives the sum of a tensor and its counterparts elsewhere."""
        return TargetSums(*(add(getattr(self, name)) for name in self.__slots__))

    def mean_entropy(self) -> float:
        """Mean entropy of the distributions, in nats: ln K where all are uniform, 0 where each is sure of one."""
        return float(self.entropy) / max(1, int(self.rows))

    def kl(self, cross_entropy: float) -> float:
        """KL(teacher || student), a mean over pairs in nats: the part of the loss that a student can still learn.

        A cross-entropy is the entropy of its target plus this divergence. It is not negative, but for rounding and,
        where the sums are of a sample of the rows, for what their entropy differs from that of all.

        Args:
            cross_entropy: mean over the pairs.

        Raises:
            ValueError: no pair learns from these distributions.
        """
        if not self.weight:
            raise ValueError("no pair learns from these distributions, so that there is no divergence; leave it out")
        return cross_entropy - float(self.weighted_entropy) / float(self.weight)

    def num_used(self) -> int:
        """How many prototypes are the likeliest for at least one row; at most the number of rows."""
        return int((self.wins > 0).sum())

    def perplexity(self) -> float:
        """The perplexity of the mean distribution: K where all prototypes are used alike, 1 where only one is."""
        return perplexity(self.masses)
