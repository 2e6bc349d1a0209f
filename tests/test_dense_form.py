"""The loss in chunks against the dense form, which holds all logits and leaves gradients to autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor

from patchssl import student_teacher
from patchssl.config import Config
from patchssl.loss import paired_cross_entropy
from patchssl.network import Network
from patchssl.pairing import mean_weights, patch_pairs
from patchssl.planning import plan
from patchssl.recipes import parse_config
from patchssl.structs import BatchViews, Boxes, Pairs, PatchMatch, Projections, ViewGroup
from patchssl.student_teacher import StudentTeacher
from patchssl.targets import sinkhorn_center
from patchssl.workspace import Workspace

TEMPERATURES: dict[str, Any] = {"student_temperature": 0.1, "teacher_temperature": 0.06}


def dense(
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
    """Logits of all rows, softmax, cross-entropy of every pair."""
    logits = student.rows @ student.prototypes.T / student_temperature  # (S, K)
    targets = (teacher.rows @ teacher.prototypes.T).unflatten(0, (-1, len(center)))  # (T / C, C, K)
    targets = ((targets - center) / teacher_temperature).softmax(-1).flatten(0, 1).detach()
    each = -(targets[pairs.teacher] * logits.log_softmax(1)[pairs.student]).sum(1)  # (P,)
    total: Tensor = (weights * each).sum()
    return total


def unit_rows(num: int, width: int, generator: torch.Generator) -> Tensor:
    rows: Tensor = torch.nn.functional.normalize(torch.randn(num, width, generator=generator), dim=1)
    return rows


def matches(how: str, num_images: int, num_views: int, grid: int, generator: torch.Generator) -> PatchMatch:
    """Random partners (B, V, 2, N) in teacher views of 25 patches."""
    shape = (num_images, num_views, 2, grid * grid)
    index = torch.randint(25, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < {"all": 2.0, "none": -1.0, "one": -1.0}.get(how, 0.4)
    if how == "one":
        mask[-1, -1, 0, 3] = True
    if how == "views without":
        mask[0, 0] = mask[:, -1] = False
    return PatchMatch(index * mask, mask)


@pytest.mark.parametrize("center_of", ["kind", "position", "sinkhorn"])
@pytest.mark.parametrize("how", ["some", "all", "none", "one", "views without"])
@pytest.mark.parametrize("num_bytes", [1, 20_000, 1 << 28])
def test_loss_and_gradients_equal_the_dense_form(how: str, center_of: str, num_bytes: int) -> None:
    generator = torch.Generator().manual_seed(num_bytes % 1000)
    num_images, num_prototypes = 3, 40
    kept, pairs = patch_pairs([matches(how, num_images, v, g, generator) for v, g in ((2, 5), (4, 2))], 25)
    rows = unit_rows(sum(map(len, kept)), 8, generator)
    prototypes = unit_rows(num_prototypes, 8, generator)
    teacher = Projections(unit_rows(num_images * 2 * 25, 8, generator), unit_rows(num_prototypes, 8, generator))
    center = torch.randn(25 if center_of == "position" else 1, num_prototypes, generator=generator) * 0.1
    if center_of == "sinkhorn":
        center = sinkhorn_center(teacher, temperature=0.06, num_iterations=3)
    # Uneven, as in the authors' mean.
    weights = mean_weights(pairs, len(pairs)) * (0.5 + torch.rand(len(pairs), generator=generator))
    found = []
    for form in (dense, paired_cross_entropy):
        leaves = [rows.clone().requires_grad_(), prototypes.clone().requires_grad_()]
        settings: dict[str, Any] = {**TEMPERATURES, "center": center, "workspace": Workspace(num_bytes)}
        loss = form(Projections(*leaves), teacher, pairs, weights, **settings)
        gradients = torch.autograd.grad(loss * 3, leaves)
        found.append((loss.detach(), *gradients))
    for expected, ours in zip(*found, strict=True):
        scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-3)
        torch.testing.assert_close(ours / scale, expected / scale, atol=1e-5, rtol=0)


VARIANTS: dict[str, dict[str, Any]] = {
    "separate": {},
    "shared": {"model": {"shared_head": True, "patch_prototypes": 12}},
    "position": {"loss": {"center": "position"}},
    "sinkhorn": {"loss": {"center": "sinkhorn"}},
    "free norms": {"model": {"norm_last_layer": False}},
    "image level": {"loss": {"patch_weight": 0.0}},
    "koleo": {"loss": {"koleo_weight": 0.1}},
    "authors": {
        "loss": {"average": "flat", "matching": "authors", "center": "position"},
        "model": {"shared_head": True, "patch_prototypes": 12},
    },
}


def configured(changes: dict[str, Any]) -> Config:
    model = {"arch": "vit_tiny_patch16_224", "patch_size": 4, "width": 24, "depth": 2, "num_heads": 2, "drop_path": 0.0}
    heads = {"head_hidden": 16, "head_bottleneck": 8, "cls_prototypes": 12, "patch_prototypes": 10}
    return parse_config(
        {
            "views": {"global_size": 16, "local_size": 8, "num_local": 3},
            "model": model | heads | changes.get("model", {}),
            "loss": {"patch_weight": 0.5} | changes.get("loss", {})
            if changes.get("loss", {}).get("average") != "flat"
            else changes["loss"],
            "train": {"steps": 4, "batch_size": 4},
        }
    )


def views_of(config: Config) -> BatchViews:
    generator = torch.Generator().manual_seed(5)

    def group(num_views: int, side: int, extent: float) -> ViewGroup:
        corners = torch.rand(4, num_views, 4, generator=generator, dtype=torch.float64) * 12
        corners[..., 2:] += extent
        flipped = torch.rand(4, num_views, generator=generator) < 0.5
        return ViewGroup(torch.randn(4, num_views, 3, side, side, generator=generator), Boxes(corners, flipped))

    groups = (group(2, config.views.global_size, 20.0), group(3, config.views.local_size, 6.0))
    return BatchViews(groups, groups[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_gradient_of_the_student_equals_the_dense_form(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(VARIANTS[variant])
    found = []
    for form in (dense, paired_cross_entropy):
        monkeypatch.setattr(student_teacher, "paired_cross_entropy", form)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            both = StudentTeacher(config)
            both.teacher.load_state_dict(Network(config, drop_path=0.0).state_dict())
            both.centers = {name: torch.randn_like(center) * 0.1 for name, center in both.centers.items()}
        views = views_of(config)
        learns, answer = plan(views.student, config), both.answer([views.teacher], 0.06)
        total = both.part_loss(
            views.student,
            both.student,
            kept=learns.kept,
            pairs=learns.pairs,
            weights=learns.weights(learns.num_pairs, average=config.loss.average),
            teacher=answer.parts[0],
            centers=answer.centers,
            teacher_temperature=0.06,
            patch_weight=0.5,
        ).total
        total.backward()
        gradients = {name: p.grad for name, p in both.student.named_parameters() if p.grad is not None}
        found.append((total.item(), gradients))
    (expected_loss, expected), (loss, gradients) = found
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        difference = float((gradients[name] - gradient).abs().max())
        assert difference <= 1e-5 * max(float(gradient.abs().max()), 1e-2 * largest), name


def random_problem(num_images: int) -> tuple[Tensor, Tensor, Projections, Pairs]:
    generator = torch.Generator().manual_seed(0)
    kept, pairs = patch_pairs([matches("some", num_images, v, g, generator) for v, g in ((2, 5), (4, 2))], 25)
    rows, prototypes = unit_rows(sum(map(len, kept)), 16, generator), unit_rows(512, 16, generator)
    return rows, prototypes, Projections(unit_rows(num_images * 50, 16, generator), prototypes.clone()), pairs


def test_bf16_products_change_the_loss_and_its_gradients_by_their_rounding() -> None:
    rows, prototypes, teacher, pairs = random_problem(4)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [rows.clone().requires_grad_(), prototypes.to(dtype).requires_grad_()]
        narrow = Projections(teacher.rows, teacher.prototypes.to(dtype))
        weights, center = mean_weights(pairs, len(pairs)), torch.zeros(1, 512)
        loss = paired_cross_entropy(Projections(*leaves), narrow, pairs, weights, center=center, **TEMPERATURES)
        assert loss.dtype == torch.float32
        found.append((loss.detach(), *(g.float() for g in torch.autograd.grad(loss, leaves))))
    assert float(found[1][0]) == pytest.approx(float(found[0][0]), rel=1e-3)
    for ours, expected in zip(found[1][1:], found[0][1:], strict=True):
        assert float((ours - expected).norm() / expected.norm()) < 0.02


def test_the_memory_of_the_logits_does_not_grow_with_the_batch() -> None:
    taken = []
    for num_images in (2, 16):
        rows, prototypes, teacher, pairs = random_problem(num_images)
        workspace = Workspace(200_000)
        weights, center = mean_weights(pairs, len(pairs)), torch.zeros(1, 512)
        leaf = Projections(rows.requires_grad_(), prototypes)
        paired_cross_entropy(leaf, teacher, pairs, weights, center=center, workspace=workspace, **TEMPERATURES)
        logits = {key[0]: block.numel() * 4 for key, block in workspace._blocks.items()}
        taken.append(sum(logits[name] for name in ("logits", "targets", "probabilities", "differences")))
    assert taken[1] <= 1.25 * taken[0]
    assert taken[1] <= 1.25 * 200_000


def test_one_workspace_serves_several_losses_before_their_backward_passes() -> None:
    rows, prototypes, teacher, pairs = random_problem(3)
    weights, center = mean_weights(pairs, len(pairs)), torch.zeros(1, 512)

    def gradients(shared: Workspace | None) -> list[Tensor]:
        leaves = [Projections(r.clone().requires_grad_(), prototypes.clone().requires_grad_()) for r in (rows, -rows)]
        settings: dict[str, Any] = {**TEMPERATURES, "center": center}
        losses = [
            paired_cross_entropy(leaf, teacher, pairs, weights, workspace=shared or Workspace(30_000), **settings)
            for leaf in leaves
        ]
        sum(losses).backward()  # type: ignore[union-attr]
        return [g for leaf in leaves for g in (leaf.rows.grad, leaf.prototypes.grad) if g is not None]

    torch.testing.assert_close(gradients(Workspace(30_000)), gradients(None), atol=0, rtol=0)


def test_gradients_are_formed_where_wanted_and_a_graph_that_is_kept_gives_them_again() -> None:
    rows, prototypes, teacher, pairs = random_problem(2)
    weights, center = mean_weights(pairs, len(pairs)), torch.zeros(1, 512)
    leaf = Projections(rows.requires_grad_(), prototypes)
    with torch.no_grad():
        without = paired_cross_entropy(leaf, teacher, pairs, weights, center=center, **TEMPERATURES)
    loss = paired_cross_entropy(leaf, teacher, pairs, weights, center=center, **TEMPERATURES)
    assert not without.requires_grad
    assert loss.item() == without.item()
    first, second = (torch.autograd.grad(loss, rows, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
