"""What the teacher says, and the centre that keeps it from collapsing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from patchssl.measures import TargetSums, spread_rows
from patchssl.structs import Projections
from patchssl.workspace import Workspace

# Blocks of about this many rows are dense enough for matrix products and leave their logits in a CPU's cache.
BLOCKS_PER_WORKSPACE = 16

# Of a teacher's logits at most so many are looked at to measure it: 1,024 rows of 65,536 prototypes, 8,192 of 8,192.
MAX_LOGITS = 1 << 26


@dataclass(frozen=True, slots=True)
class Targets:
    """The teacher's distributions softmax((logits - center) / temperature), not yet formed.

    As in DINO (Caron et al., ICCV 2021, eq. 1).

    Attributes:
        rows: (T, d), divided by the temperature.
        prototypes: (K, d).
        shifts: (C, K) centres divided by the temperature: one for all rows (C = 1), or one for each of C positions,
            row t having position t % C.
    """

    rows: Tensor
    prototypes: Tensor
    shifts: Tensor

    @classmethod
    def of(cls, teacher: Projections, *, center: Tensor, temperature: float) -> "Targets":
        """From the teacher's projections, in the precision of its prototypes."""
        dtype = teacher.prototypes.dtype
        scaled = teacher.rows.detach() / temperature
        return cls(scaled.to(dtype), teacher.prototypes.detach(), (center / temperature).to(dtype))

    def probabilities(self, chosen: Tensor, out: Tensor, workspace: Workspace) -> Tensor:
        """Write the distributions of the chosen rows (M,) into out (M, K)."""
        with torch.no_grad(), torch.autocast(out.device.type, enabled=False):
            size = block_rows(self.prototypes, workspace)
            for rows, target in zip(chosen.split(size), out.split(size), strict=True):
                logits = workspace.take("logits", *target.shape, like=target)
                projected = self.rows[rows]
                if len(self.shifts) == 1:
                    torch.addmm(self.shifts[0], projected, self.prototypes.T, beta=-1, out=logits)
                else:
                    torch.mm(projected, self.prototypes.T, out=logits)
                    shifts = workspace.take("targets", *target.shape, like=target)
                    logits.sub_(torch.index_select(self.shifts, 0, rows % len(self.shifts), out=shifts))
                torch.softmax(logits, dim=1, out=target)
        return out

    def sums(self, weights: Tensor, workspace: Workspace, *, max_logits: int = MAX_LOGITS) -> TargetSums:
        """What is measured of the distributions, in one pass over their logits.

        Args:
            weights: (T,) for each row the sum of the weights of the pairs that learn from it.
            workspace: tells how many logits may exist at a time.
            max_logits: where T * K is more, T is cut down to this by taking rows that stand for all of them.
        """
        num = len(self.prototypes)
        chosen = spread_rows(len(self.rows), max(1, max_logits // num), self.rows.device)
        like = self.prototypes
        wide = torch.promote_types(like.dtype, torch.float32)
        weights = weights.to(chosen.device, wide)[chosen]
        entropies = like.new_zeros(len(chosen), dtype=wide)
        masses, wins = like.new_zeros(num, dtype=wide), like.new_zeros(num, dtype=torch.int64)
        size = block_rows(like, workspace)
        for rows, entropy in zip(chosen.split(size), entropies.split(size), strict=True):
            out = workspace.take("probabilities", len(rows), num, like=like)
            probabilities = self.probabilities(rows, out, workspace).to(wide)
            masses += probabilities.sum(dim=0)
            first = probabilities.argmax(dim=1)
            wins.index_add_(0, first, torch.ones_like(first))
            # In half precision probabilities do not quite sum to 1.
            total = probabilities.sum(dim=1)
            entropy.copy_(torch.special.entr(probabilities, out=probabilities).sum(dim=1) / total + total.log())
        num_rows = torch.tensor(len(chosen), device=chosen.device)
        return TargetSums(num_rows, entropies.sum(), weights.sum(), weights @ entropies, masses, wins)


def block_rows(prototypes: Tensor, workspace: Workspace) -> int:
    """How many rows are taken through the prototypes at a time."""
    return max(1, workspace.max_rows(prototypes) // BLOCKS_PER_WORKSPACE)


def mean_logits(teacher: Projections, num_positions: int = 1) -> Tensor:
    """The (C, K) mean of the teacher's logits over all rows of a position.

    The mean is taken before the prototypes: they are linear.

    Args:
        teacher: T rows, C dividing T, row t having position t % C.
        num_positions: C.
    """
    rows: Tensor = teacher.rows.float().unflatten(0, (-1, num_positions)).mean(dim=0)  # (C, d)
    parts = teacher.prototypes.split(8192)  # so that their float32 copies stay small
    with torch.autocast(rows.device.type, enabled=False):
        return torch.cat([rows @ part.float().T for part in parts], dim=1)


def moved_center(center: Tensor, batch_mean: Tensor, momentum: float) -> Tensor:
    """The centre after a step: momentum * center + (1 - momentum) * batch_mean."""
    return center * momentum + batch_mean * (1 - momentum)


def sinkhorn_center(
    teacher: Projections,
    *,
    temperature: float,
    num_iterations: int,
    workspace: Workspace | None = None,
    over_all: Callable[[Tensor], Tensor] = lambda log_sums: log_sums,
) -> Tensor:
    """The (1, K) centre under which the softmax of the teacher's rows uses all prototypes alike.

    Sinkhorn-Knopp (Cuturi, 2013; in self-distillation SwAV, Caron et al., 2020, and DINOv2, Oquab et al., 2023) scales
    the columns and the rows of exp(logits / temperature) in turn to equal sums. Its last step scales the rows, so its
    result is a softmax of logits from which a centre has been taken; that centre is what is returned. The logits are
    formed anew, block by block, in every iteration.

    Args:
        teacher: T rows, at least one.
        temperature: above 0.
        num_iterations: of scaling columns, then rows; SwAV and DINOv2 take 3.
        workspace: tells how many logits may exist at a time.
        over_all: where several processes hold rows, turns the logarithm of the sums (1, K) over those of one of them
            into that over all, for everyone.
    """
    workspace = workspace or Workspace()
    column = teacher.prototypes.new_zeros(1, len(teacher.prototypes), dtype=_at_least_float32(teacher.prototypes))
    first = True
    for _ in range(num_iterations):
        sums = torch.full_like(column, -torch.inf)
        for rows in teacher.rows.split(block_rows(teacher.prototypes, workspace)):
            with torch.autocast(rows.device.type, enabled=False):
                scaled = (rows.to(teacher.prototypes.dtype) @ teacher.prototypes.T).to(column.dtype) / temperature
            row = 0.0 if first else (scaled - column).logsumexp(dim=1, keepdim=True)
            sums = torch.logaddexp(sums, (scaled - row).logsumexp(dim=0, keepdim=True))
        column, first = over_all(sums), False
    return column * temperature


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
