"""The distillation loss between paired tokens, without holding the logits of all of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchssl.chunks import Chunk, cut
from patchssl.structs import Pairs, Projections
from patchssl.targets import Targets, block_rows
from patchssl.workspace import Workspace


def paired_cross_entropy(
    student: Projections,
    teacher: Projections,
    pairs: Pairs,
    weights: Tensor,
    *,
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    workspace: Workspace | None = None,
) -> Tensor:
    """Weighted sum of the cross-entropies of all pairs.

    The teacher's probabilities are softmax((logits - center) / teacher_temperature), the student's
    softmax(logits / student_temperature), as in DINO (Caron et al., ICCV 2021, eq. 1). As probabilities sum to 1,
    CE(p, s) = logsumexp(s) - <p, s>, so each student row meets the prototypes once, however many partners it has.
    Logits exist for a chunk of rows at a time, and the gradients are formed with them: memory does not grow with the
    number of rows. Products are taken in the precision of the prototypes, their sums in float32.

    Args:
        student: S rows, gradients flow into rows and prototypes.
        teacher: T rows; no gradient.
        pairs: P pairs of rows.
        weights: (P,) float, above 0.
        center: (C, K): one centre for all teacher rows (C = 1), or one for each of C positions, teacher row t having
            position t % C.
        student_temperature: above 0.
        teacher_temperature: above 0.
        workspace: memory to use again in the next step; it also tells how many logits may exist at a time.

    Returns:
        A scalar, in at least float32; 0 (with zero gradients) without pairs. It has no second derivatives.
    """
    workspace = workspace or Workspace()
    chunks = cut(pairs, weights, num_chunk_rows(student.prototypes, workspace))
    return chunked_cross_entropy(
        student,
        teacher,
        chunks,
        center=center,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        workspace=workspace,
    )


def num_chunk_rows(prototypes: Tensor, workspace: Workspace) -> int:
    """How many rows of student and teacher a chunk may have; the rest of the workspace is for blocks of them."""
    return workspace.max_rows(prototypes) - 2 * block_rows(prototypes, workspace)


def chunked_cross_entropy(
    student: Projections,
    teacher: Projections,
    chunks: Sequence[Chunk],
    *,
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    workspace: Workspace,
) -> Tensor:
    """`paired_cross_entropy` of pairs that are cut already, into chunks on any device."""
    problem = _Problem(
        Targets.of(teacher, center=center, temperature=teacher_temperature),
        [chunk.to(student.rows.device) for chunk in chunks],
        student_temperature,
        workspace,
        with_gradients=torch.is_grad_enabled(),
    )
    loss: Tensor = _PairedCrossEntropy.apply(student.rows, student.prototypes, problem)
    return loss


@dataclass(frozen=True, slots=True)
class _Problem:
    targets: Targets
    chunks: Sequence[Chunk]
    temperature: float
    workspace: Workspace
    with_gradients: bool


class _PairedCrossEntropy(torch.autograd.Function):
    """Forms loss and gradients together, while the logits of a chunk are there."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, prototypes: Tensor, problem: _Problem) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            loss = rows.new_zeros((), dtype=torch.promote_types(rows.dtype, torch.float32))
            row_gradient = torch.zeros_like(rows)
            gradient = _PrototypeGradient(prototypes, problem)
            for chunk in problem.chunks:
                scaled = rows[chunk.student] / problem.temperature  # (S, d)
                part, difference = _differences(scaled, prototypes, chunk, problem)
                loss += part
                if problem.with_gradients:
                    scale = (chunk.weight / problem.temperature).to(rows.dtype)[:, None]
                    back = (difference @ prototypes).to(rows.dtype)  # (S, d)
                    row_gradient.index_copy_(0, chunk.student, back.mul_(scale))
                    gradient.add(difference, rows[chunk.student] * scale)
        ctx.gradients = (row_gradient, gradient.total()) if problem.with_gradients else None
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, prototypes = ctx.gradients
        return rows * loss_gradient, prototypes * loss_gradient, None


def _differences(rows: Tensor, prototypes: Tensor, chunk: Chunk, problem: _Problem) -> tuple[Tensor, Tensor]:
    """The loss of a chunk and the gradient of each row's mean cross-entropy with respect to its logits.

    Args:
        rows: (S, d), divided by the temperature.
        prototypes: (K, d).
        chunk: with S student rows.
        problem: the teacher's side.

    Returns:
        A scalar; (S, K) student's probabilities less the mean of its partners', in the workspace.
    """
    workspace, dtype = problem.workspace, prototypes.dtype
    num_prototypes = len(prototypes)
    probabilities = workspace.take("probabilities", len(chunk.teacher), num_prototypes, like=prototypes)
    problem.targets.probabilities(chunk.teacher, probabilities, workspace)
    differences = workspace.take("differences", len(rows), num_prototypes, like=prototypes)
    losses = []
    size = block_rows(prototypes, workspace)
    for start, block, difference in zip(
        range(0, len(rows), size), rows.to(dtype).split(size), differences.split(size), strict=True
    ):
        logits = workspace.take("logits", *difference.shape, like=prototypes)
        torch.mm(block, prototypes.T, out=logits)
        torch.softmax(logits, dim=1, out=difference)
        # The largest probability is exp(largest logit - logsumexp).
        loss = (logits.amax(dim=1).to(rows.dtype) - difference.amax(dim=1).to(rows.dtype).log()).clone()
        for layer in chunk.layers:
            partner, share = layer.teacher[start : start + size], layer.share[start : start + size, None].to(dtype)
            num = len(partner)
            if not num:
                break
            target = workspace.take("targets", num, num_prototypes, like=prototypes)
            torch.index_select(probabilities, 0, partner, out=target)
            difference[:num].addcmul_(target, share, value=-1)
            loss[:num] -= _row_sums(target.mul_(logits[:num])).to(rows.dtype) * share[:, 0]
        losses.append(loss)
    return torch.cat(losses) @ chunk.weight.to(rows.dtype), differences


def _row_sums(values: Tensor) -> Tensor:
    """(M,) sums over (M, K), of shorter pieces first, since PyTorch rounds sums to the precision of the values."""
    pieces: Tensor = values.unflatten(1, (math.gcd(values.shape[1], 256), -1)).sum(dim=2)
    return pieces.to(torch.promote_types(values.dtype, torch.float32)).sum(dim=1)


class _PrototypeGradient:
    """Sums the gradient (K, d) over chunks, in at least float32."""

    def __init__(self, prototypes: Tensor, problem: _Problem) -> None:
        self._like, self._workspace = prototypes, problem.workspace
        self._alone = len(problem.chunks) == 1
        self._sum: Tensor | None = None

    def add(self, differences: Tensor, rows: Tensor) -> None:
        """Add differences.T @ rows, of (S, K) and (S, d)."""
        like, rows = self._like, rows.to(self._like.dtype)
        if self._alone:
            self._sum = differences.T @ rows
            return
        wide = torch.promote_types(like.dtype, torch.float32)
        if self._sum is None:
            self._sum = self._workspace.take("gradient", *like.shape, like=like, dtype=wide).zero_()
        if wide == like.dtype:
            self._sum.addmm_(differences.T, rows)
        else:
            part = self._workspace.take("part", *like.shape, like=like)
            self._sum.add_(torch.mm(differences.T, rows, out=part))

    def total(self) -> Tensor:
        """In the precision of the prototypes, in memory of its own."""
        if self._sum is None:
            return torch.zeros_like(self._like)
        return self._sum if self._alone else self._sum.to(self._like.dtype, copy=True)
