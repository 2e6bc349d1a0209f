"""The distillation loss between paired tokens, and the centre that keeps the teacher from collapsing."""

import torch
from torch import Tensor

from patchssl.structs import Pairs, Projections


def paired_cross_entropy(
    student: Projections,
    teacher: Projections,
    pairs: Pairs,
    weights: Tensor,
    *,
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Weighted sum of the cross-entropies of all pairs.

    The teacher's probabilities are softmax((logits - center) / teacher_temperature), the student's
    softmax(logits / student_temperature), as in DINO (Caron et al., 2021, eq. 1). As probabilities sum to 1,
    CE(p, s) = logsumexp(s) - <p, s>, so each student row is normalised once, however many partners it has.

    Args:
        student: S rows, gradients flow into rows and prototypes.
        teacher: T rows; no gradient.
        pairs: P pairs of rows.
        weights: (P,) float.
        center: (C, K): one centre for all teacher rows (C = 1), or one for each of C positions, teacher row t having
            position t % C.
        student_temperature: above 0.
        teacher_temperature: above 0.

    Returns:
        A scalar, in at least float32; 0 (with zero gradients) without pairs.
    """
    logits = _logits(student) / student_temperature  # (S, K)
    with torch.no_grad():
        weights = weights.to(logits.dtype)
        probabilities = teacher_probabilities(teacher, center=center, temperature=teacher_temperature)  # (T, K)
        target = torch.zeros_like(logits)
        target.index_add_(0, pairs.student, probabilities[pairs.teacher] * weights[:, None])
        mass = torch.zeros_like(logits[:, 0]).index_add_(0, pairs.student, weights)  # (S,)
    return (mass * logits.logsumexp(dim=1)).sum() - (target * logits).sum()


def teacher_probabilities(teacher: Projections, *, center: Tensor, temperature: float) -> Tensor:
    """The (T, K) distributions that the student learns from; arguments as in paired_cross_entropy."""
    logits = _logits(teacher).unflatten(0, (-1, len(center)))  # (T / C, C, K)
    probabilities: Tensor = ((logits - center) / temperature).softmax(dim=-1)
    return probabilities.flatten(0, 1)


def entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy in nats of (T, K) distributions."""
    return -torch.xlogy(probabilities, probabilities).sum(dim=1).mean()


def mean_logits(teacher: Projections, num_positions: int = 1) -> Tensor:
    """The (C, K) mean of the teacher's logits over all rows of a position.

    The mean is taken before the prototypes: they are linear.

    Args:
        teacher: T rows, C dividing T, row t having position t % C.
        num_positions: C.
    """
    rows: Tensor = teacher.rows.float().unflatten(0, (-1, num_positions)).mean(dim=0)  # (C, d)
    return rows @ teacher.prototypes.float().T


def sinkhorn_center(teacher: Projections, *, temperature: float, num_iterations: int) -> Tensor:
    """The (1, K) centre under which the softmax of the teacher's rows uses all prototypes alike.

    Sinkhorn-Knopp (Cuturi, 2013; in self-distillation SwAV, Caron et al., 2020, and DINOv2, Oquab et al., 2023) scales
    the columns and the rows of exp(logits / temperature) in turn to equal sums. Its last step scales the rows, so its
    result is a softmax of logits from which a centre has been taken; that centre is what is returned.

    Args:
        teacher: T rows, at least one.
        temperature: above 0.
        num_iterations: of scaling columns, then rows; SwAV and DINOv2 take 3.
    """
    scaled = _logits(teacher) / temperature  # (T, K)
    row = scaled.new_zeros(len(scaled), 1)
    for _ in range(num_iterations):
        column = (scaled - row).logsumexp(dim=0, keepdim=True)  # (1, K)
        row = (scaled - column).logsumexp(dim=1, keepdim=True)  # (T, 1)
    return column * temperature


def moved_center(center: Tensor, batch_mean: Tensor, momentum: float) -> Tensor:
    """The centre after a step: momentum * center + (1 - momentum) * batch_mean."""
    return center * momentum + batch_mean * (1 - momentum)


def _logits(projections: Projections) -> Tensor:
    """(M, K), the product in the precision of its factors, the result in at least float32."""
    logits = projections.rows @ projections.prototypes.to(projections.rows.dtype).T
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
