"""The loss: by hand, against the originals' values, against its definition, and its properties."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchssl.loss import paired_cross_entropy
from patchssl.matching import authors
from patchssl.pairing import cls_pairs, count_per_view_pair, flat_weights, mean_weights, patch_pairs
from patchssl.structs import Boxes, Pairs, Projections
from patchssl.targets import Targets, mean_logits, moved_center, sinkhorn_center
from patchssl.workspace import Workspace

GOLDEN = Path(__file__).parent / "golden"


def as_projections(logits: Tensor) -> Projections:
    """Rows whose logits are given: identity prototypes."""
    return Projections(logits, torch.eye(logits.shape[1], dtype=logits.dtype))


def image_major(rows: Tensor, batch: int) -> Tensor:
    """(V * B, ...) with all images of view 0 first -> (B * V, ...)."""
    by_image: Tensor = rows.unflatten(0, (-1, batch)).transpose(0, 1).flatten(0, 1)
    return by_image


def random_case(seed: int, num_pairs: int) -> tuple[Projections, Projections, Pairs, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student, teacher = Projections(normal(7, 5), normal(11, 5)), Projections(normal(6, 5), normal(11, 5))
    pairs = Pairs(
        torch.randint(7, (num_pairs,), generator=generator),
        torch.randint(6, (num_pairs,), generator=generator),
        torch.zeros(num_pairs, dtype=torch.int64),
    )
    return student, teacher, pairs, torch.rand(num_pairs, generator=generator), normal(3, 11)


def targets_of(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """All of the teacher's distributions."""
    targets = Targets.of(as_projections(logits), center=center, temperature=temperature)
    return targets.probabilities(torch.arange(len(logits)), torch.empty_like(logits), Workspace())


def by_definition(
    student: Projections, teacher: Projections, pairs: Pairs, weights: Tensor, center: Tensor, ts: float, tt: float
) -> Tensor:
    """Cross-entropy pair by pair."""
    total = torch.zeros((), dtype=torch.float64)
    for s, t, weight in zip(pairs.student.tolist(), pairs.teacher.tolist(), weights, strict=True):
        target = torch.softmax((teacher.prototypes @ teacher.rows[t] - center[t % len(center)]) / tt, 0)
        total = total - weight * (target * torch.log_softmax(student.prototypes @ student.rows[s] / ts, 0)).sum()
    return total


def test_two_prototypes_by_hand() -> None:
    # Teacher odds 3:1 after a centre that takes ln 2 off the first logit; student odds 1:1, so CE = ln 2.
    student, teacher = as_projections(torch.zeros(1, 2)), as_projections(torch.tensor([[math.log(6.0), 0.0]]))
    center = torch.tensor([[math.log(2.0), 0.0]])
    assert targets_of(teacher.rows, center, 1.0).tolist()[0] == pytest.approx([0.75, 0.25])
    pairs = Pairs(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    loss = paired_cross_entropy(
        student, teacher, pairs, torch.tensor([2.0]), center=center, student_temperature=1.0, teacher_temperature=1.0
    )
    assert float(loss) == pytest.approx(2 * math.log(2))


def test_equals_dino() -> None:
    golden = np.load(GOLDEN / "dino_loss.npz")
    batch, views = int(golden["batch"]), int(golden["views"])
    teacher = as_projections(image_major(torch.from_numpy(golden["teacher_logits"]), batch))
    student_logits = torch.from_numpy(golden["student_logits"])
    # Two groups, as global and local views are.
    student = as_projections(
        torch.cat([image_major(student_logits[: 2 * batch], batch), image_major(student_logits[2 * batch :], batch)])
    )
    center = torch.from_numpy(golden["center_before"])
    pairs = cls_pairs(batch, 2, [2, views - 2])
    loss = paired_cross_entropy(
        student,
        teacher,
        pairs,
        mean_weights(pairs, len(pairs)),
        center=center,
        student_temperature=float(golden["student_temp"]),
        teacher_temperature=float(golden["teacher_temp"]),
    )
    assert float(loss) == pytest.approx(float(golden["loss"]), abs=1e-5, rel=1e-6)
    after = moved_center(center, mean_logits(teacher), 0.9)
    torch.testing.assert_close(after, torch.from_numpy(golden["center_after"]), atol=1e-5, rtol=1e-5)


def test_authors_variant_equals_pwself() -> None:
    golden = np.load(GOLDEN / "pwself_loss.npz")
    batch = int(golden["batch"])
    corners = torch.from_numpy(golden["boxes"]).double().expand(batch, -1, -1)
    boxes = Boxes(corners, torch.from_numpy(golden["flips"]).expand(batch, -1))
    teacher_boxes = Boxes(boxes.corners[:, None, :2], boxes.flipped[:, None, :2])
    matches = [
        authors(
            Boxes(boxes.corners[:, views, None], boxes.flipped[:, views, None]), (side, side), teacher_boxes, (4, 4)
        )
        for views, side in ((slice(0, 2), 4), (slice(2, 5), 2))
    ]
    kept, patches = patch_pairs(matches, 16)
    tokens = cls_pairs(batch, 2, [2, 3])

    def split(name: str) -> tuple[Tensor, Tensor]:
        rows = image_major(torch.from_numpy(golden[name]), batch)  # (B * V, 1 + N, K)
        return rows[:, 0], rows[:, 1:].flatten(0, 1)

    teacher_cls, teacher_patch = split("teacher_logits")
    (global_cls, global_patch), (local_cls, local_patch) = split("student_global_logits"), split("student_local_logits")
    center = torch.from_numpy(golden["center_before"])[0]
    counts = count_per_view_pair(tokens, 10) + count_per_view_pair(patches, 10)
    cls_weights, patch_weights = flat_weights(tokens, counts), flat_weights(patches, counts)
    assert float(cls_weights.sum() + patch_weights.sum()) == pytest.approx(1)
    temperatures: dict[str, Any] = {
        "student_temperature": float(golden["student_temp"]),
        "teacher_temperature": float(golden["teacher_temp"]),
    }
    cls = paired_cross_entropy(
        as_projections(torch.cat([global_cls, local_cls])),
        as_projections(teacher_cls),
        tokens,
        cls_weights,
        center=center[:1],
        **temperatures,
    )
    patch = paired_cross_entropy(
        as_projections(torch.cat([global_patch[kept[0]], local_patch[kept[1]]])),
        as_projections(teacher_patch),
        patches,
        patch_weights,
        center=center[1:],
        **temperatures,
    )
    assert float(cls + patch) == pytest.approx(float(golden["loss"]), abs=1e-5, rel=1e-6)
    after = torch.cat(
        [
            moved_center(center[:1], mean_logits(as_projections(teacher_cls)), float(golden["center_momentum"])),
            moved_center(center[1:], mean_logits(as_projections(teacher_patch), 16), float(golden["center_momentum"])),
        ]
    )
    torch.testing.assert_close(after, torch.from_numpy(golden["center_after"])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_pairs", [1, 2, 40])
@pytest.mark.parametrize("positions", [1, 3])
def test_equals_its_definition_with_gradients(num_pairs: int, positions: int) -> None:
    student, teacher, pairs, weights, center = random_case(num_pairs, num_pairs)
    temperatures: dict[str, Any] = {"student_temperature": 0.3, "teacher_temperature": 0.7}
    center = center[:positions]

    def ours(s: Projections) -> Tensor:
        return paired_cross_entropy(s, teacher, pairs, weights, center=center, **temperatures)

    def slow(s: Projections) -> Tensor:
        return by_definition(s, teacher, pairs, weights, center, *temperatures.values())

    gradients = []
    for loss_of in (ours, slow):
        rows, prototypes = student.rows.clone().requires_grad_(), student.prototypes.clone().requires_grad_()
        loss = loss_of(Projections(rows, prototypes))
        loss.backward()
        gradients.append((loss.detach().double(), rows.grad, prototypes.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_no_pairs_cost_nothing_and_have_zero_gradients() -> None:
    student, teacher, pairs, weights, center = random_case(0, 0)
    rows = student.rows.clone().requires_grad_()
    loss = paired_cross_entropy(
        Projections(rows, student.prototypes),
        teacher,
        pairs,
        weights,
        center=center,
        student_temperature=0.1,
        teacher_temperature=0.1,
    )
    loss.backward()
    assert loss.item() == 0
    assert rows.grad is not None
    assert not rows.grad.any()


def test_a_perfect_student_pays_the_teachers_entropy_and_uniform_pays_ln_k() -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    same = Pairs(torch.arange(5), torch.arange(5), torch.zeros(5, dtype=torch.int64))

    def loss(student: Tensor) -> float:
        return float(
            paired_cross_entropy(
                as_projections(student),
                as_projections(logits),
                same,
                mean_weights(same, len(same)),
                center=torch.zeros(1, 9),
                student_temperature=0.2,
                teacher_temperature=0.2,
            )
        )

    targets = Targets.of(as_projections(logits), center=torch.zeros(1, 9), temperature=0.2)
    assert loss(logits) == pytest.approx(targets.sums(torch.ones(5), Workspace()).mean_entropy(), rel=1e-5)
    assert loss(torch.zeros(5, 9)) == pytest.approx(math.log(9), rel=1e-6)


def test_mean_of_logits_is_taken_by_position() -> None:
    rows = torch.arange(12.0).reshape(6, 2)
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    by_hand = torch.stack([(rows @ prototypes.T)[position::3].mean(0) for position in range(3)])
    torch.testing.assert_close(mean_logits(Projections(rows, prototypes), 3), by_hand)


def test_sinkhorn_equals_scaling_columns_and_rows_in_turn() -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    table = torch.exp(logits / 0.3)
    for _ in range(3):
        table = table / table.sum(0, keepdim=True)
        table = table / table.sum(1, keepdim=True)
    center = sinkhorn_center(as_projections(logits), temperature=0.3, num_iterations=3)
    torch.testing.assert_close(targets_of(logits, center, 0.3), table)


def test_sinkhorn_uses_all_prototypes_alike_in_the_end() -> None:
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + torch.arange(6.0)
    center = sinkhorn_center(as_projections(logits), temperature=0.5, num_iterations=200)
    probabilities = targets_of(logits, center, 0.5)
    torch.testing.assert_close(probabilities.mean(0), torch.full((6,), 1 / 6, dtype=torch.float64))


def test_sinkhorn_by_hand() -> None:
    # Both rows prefer the first of two prototypes by the same odds: nothing but the preference is left to take away.
    center = sinkhorn_center(as_projections(torch.tensor([[1.0, 0.0], [1.0, 0.0]])), temperature=0.1, num_iterations=1)
    assert float(center[0, 0] - center[0, 1]) == pytest.approx(1.0)
