"""Student and teacher: the whole loss against a slow second implementation, and the teacher's step."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchssl.backbones.vit import recompute_activations, use_plain_attention, vit_tokens
from patchssl.config import Config
from patchssl.network import Network
from patchssl.planning import plan
from patchssl.recipes import parse_config
from patchssl.structs import Boxes, ViewGroup
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import LossTerms
from patchssl.updates import clip_gradients, weight_decay_groups

TINY: dict[str, Any] = {
    "views": {"global_size": 16, "local_size": 8, "num_local": 3},
    "model": {
        "arch": "vit_tiny_patch16_224",
        "patch_size": 4,
        "width": 24,
        "depth": 2,
        "num_heads": 2,
        "drop_path": 0.0,
        "head_hidden": 16,
        "head_bottleneck": 8,
        "cls_prototypes": 12,
        "patch_prototypes": 10,
    },
    "train": {"steps": 4, "batch_size": 4},
}


def tiny(**loss: Any) -> Config:
    model = dict(TINY["model"])
    if loss.pop("shared_head", False):
        model |= {"shared_head": True, "patch_prototypes": model["cls_prototypes"]}
    if loss.pop("pooling", None) == "mean":
        model |= {"pooling": "mean"}
    return parse_config({**TINY, "model": model, "loss": loss})


def random_views(config: Config, num_images: int = 3) -> list[ViewGroup]:
    generator = torch.Generator().manual_seed(0)

    def group(num_views: int, side: int, extent: float) -> ViewGroup:
        corners = torch.rand(num_images, num_views, 4, generator=generator, dtype=torch.float64) * 12
        corners[..., 2:] = extent + corners[..., 2:]
        flipped = torch.rand(num_images, num_views, generator=generator) < 0.5
        pixels = torch.randn(num_images, num_views, 3, side, side, generator=generator)
        return ViewGroup(pixels, Boxes(corners, flipped))

    return [group(2, config.views.global_size, 20.0), group(config.views.num_local, config.views.local_size, 6.0)]


def networks(config: Config) -> StudentTeacher:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        both = StudentTeacher(config)
        # Apart from each other and with centres away from 0, so that a mix-up shows.
        both.teacher.load_state_dict(Network(config, drop_path=0.0).state_dict())
        both.centers = {name: torch.randn_like(center) * 0.1 for name, center in both.centers.items()}
    return both


def step_losses(both: StudentTeacher, groups: list[ViewGroup]) -> tuple[Tensor, LossTerms]:
    """What is minimised, with gradients, and what it is made of."""
    config = both.config
    learns = plan(groups, config)
    answer = both.answer([groups[0]], 0.07)
    part = both.part_loss(
        groups,
        both.student,
        kept=learns.kept,
        pairs=learns.pairs,
        weights=learns.weights(learns.num_pairs, average=config.loss.average),
        teacher=answer.parts[0],
        centers=answer.centers,
        teacher_temperature=0.07,
        patch_weight=config.loss.patch_weight,
    )
    return part.total, LossTerms.of([part], len(learns.pairs.get("patch", ())), answer)


def logits_of(network: Network, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """CLS (K,) and patch (N, K) logits of one view."""
    tokens = vit_tokens(network.backbone, pixels[None])
    cls = network.cls_head(tokens.cls)[0] @ network.cls_head.last_layer().T
    if not network.with_patches:
        return cls, None
    head = network.patch_head or network.cls_head
    return cls, head(tokens.patches[0]) @ head.last_layer().T


def partner_of(student: Boxes, row: int, column: int, side: int, teacher: Boxes, teacher_side: int) -> int | None:
    """The teacher patch that holds the centre of a student patch, by the definition of matching."""
    top, left, height, width = student.corners.tolist()
    if student.flipped:
        column = side - 1 - column
    y, x = top + (row + 0.5) * height / side, left + (column + 0.5) * width / side
    top, left, height, width = teacher.corners.tolist()
    if not (top <= y < top + height and left <= x < left + width):
        return None
    found_row: int = math.floor((y - top) / height * teacher_side)
    found_column: int = math.floor((x - left) / width * teacher_side)
    return found_row * teacher_side + (teacher_side - 1 - found_column if teacher.flipped else found_column)


def slow_losses(both: StudentTeacher, groups: list[ViewGroup], temperature: float) -> tuple[float, float]:
    """Means of the cross-entropies of CLS and of patches, one pair at a time."""
    terms: dict[str, list[float]] = {"cls": [], "patch": []}

    def add(kind: str, teacher: Tensor, student: Tensor, position: int) -> None:
        center = both.centers[kind]
        target = torch.softmax((teacher - center[position % len(center)]) / temperature, 0)
        terms[kind].append(-float((target * torch.log_softmax(student / 0.1, 0)).sum()))

    views = [(number, group, view) for number, group in enumerate(groups) for view in range(group.num_views)]
    for image in range(groups[0].pixels.shape[0]):
        for q in range(2):
            teacher_cls, teacher_patches = logits_of(both.teacher, groups[0].pixels[image, q])
            for number, group, view in views:
                if number == 0 and view == q:
                    continue
                cls, patches = logits_of(both.student, group.pixels[image, view])
                add("cls", teacher_cls, cls, 0)
                side, teacher_side = group.side_px // 4, groups[0].side_px // 4
                for patch in range(side * side if patches is not None else 0):
                    boxes = group.boxes[image, view], groups[0].boxes[image, q]
                    partner = partner_of(boxes[0], patch // side, patch % side, side, boxes[1], teacher_side)
                    if partner is not None:
                        assert patches is not None
                        assert teacher_patches is not None
                        add("patch", teacher_patches[partner], patches[patch], partner)
    return tuple(sum(values) / max(1, len(values)) for values in terms.values())  # type: ignore[return-value]


@pytest.mark.parametrize(
    "settings",
    [{"patch_weight": 0.5}, {"patch_weight": 0.0}, {"center": "position"}, {"shared_head": True}, {"pooling": "mean"}],
    ids=lambda settings: next(iter(settings)),
)
def test_the_loss_equals_its_definition(settings: dict[str, Any]) -> None:
    config = tiny(**settings)
    both, groups = networks(config), random_views(config)
    both.student.eval()
    with torch.no_grad():
        _, terms = step_losses(both, groups)
        cls, patch = slow_losses(both, groups, 0.07)
    assert float(terms.cls) == pytest.approx(cls, rel=1e-5)
    assert float(terms.patch) == pytest.approx(patch, rel=1e-5)
    assert float(terms.total) == pytest.approx(cls + config.loss.patch_weight * patch, rel=1e-5)


def test_without_a_class_token_the_mean_of_the_patches_stands_for_the_image() -> None:
    network = networks(tiny(pooling="mean")).student.backbone
    tokens = vit_tokens(network, torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(0)))
    assert tokens.grid == (4, 3)
    assert tokens.patches.shape == (2, 12, 24)
    torch.testing.assert_close(tokens.cls, tokens.patches.mean(1))
    # The final norm is on the patches: each has mean 0 and variance 1 before its scale and shift.
    torch.testing.assert_close(tokens.patches.var(-1, unbiased=False), torch.ones(2, 12), atol=1e-3, rtol=1e-3)


def test_flat_average_lies_between_its_parts() -> None:
    config = tiny(average="flat", matching="authors", center="position", shared_head=True)
    both, groups = networks(config), random_views(config)
    with torch.no_grad():
        _, terms = step_losses(both, groups)
    low, high = sorted((float(terms.cls), float(terms.patch)))
    assert low <= float(terms.total) <= high


def test_plain_attention_changes_rounding_only() -> None:
    config = tiny()
    both, groups = networks(config), random_views(config)
    fused, _ = step_losses(both, groups)
    for network in (both.student, both.teacher):
        use_plain_attention(network.backbone)
    assert not any(getattr(module, "fused_attn", False) for module in both.student.modules())
    plain, _ = step_losses(both, groups)
    assert plain.item() == pytest.approx(fused.item(), rel=1e-5)


def test_without_locals_and_without_any_partner() -> None:
    config = parse_config({**TINY, "views": {**TINY["views"], "num_local": 0}})
    both, groups = networks(config), random_views(config)[:1]
    groups[0].boxes.corners[:, 1, :2] += 100
    total, terms = step_losses(both, groups)
    total.backward()
    assert terms.num_patch_pairs == 0
    assert float(terms.patch) == 0
    assert all(torch.isfinite(p.grad).all() for p in both.student.parameters() if p.grad is not None)


def test_no_gradient_reaches_the_teacher_and_every_trained_weight_of_the_student_gets_one() -> None:
    config = tiny()
    both = networks(config)
    step_losses(both, random_views(config))[0].backward()
    assert all(parameter.grad is None for parameter in both.teacher.parameters())
    without = [name for name, p in both.student.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_the_teacher_follows_by_hand() -> None:
    both = networks(tiny())
    before = [parameter.clone() for parameter in both.teacher.parameters()]
    both.ema_step(1.0)
    torch.testing.assert_close(list(both.teacher.parameters()), before)
    both.ema_step(0.75)
    by_hand = [0.75 * t + 0.25 * s for t, s in zip(before, both.student.parameters(), strict=True)]
    torch.testing.assert_close([p.data for p in both.teacher.parameters()], [p.data for p in by_hand])
    both.ema_step(0.0)
    torch.testing.assert_close(both.teacher.state_dict(), both.student.state_dict())


def test_centres_move_towards_the_mean_logits() -> None:
    config = tiny(center="position")
    both = networks(config)
    before = {name: center.clone() for name, center in both.centers.items()}
    _, terms = step_losses(both, random_views(config))
    both.update_centers(terms.answer)
    teacher = terms.answer.whole
    assert teacher.patch is not None
    logits = (teacher.patch.rows @ teacher.patch.prototypes.T).reshape(-1, 16, 10)
    torch.testing.assert_close(both.centers["patch"], 0.9 * before["patch"] + 0.1 * logits.mean(0))
    mean = (teacher.cls.rows @ teacher.cls.prototypes.T).mean(0, keepdim=True)
    torch.testing.assert_close(both.centers["cls"], 0.9 * before["cls"] + 0.1 * mean)


def test_biases_and_vectors_have_no_weight_decay() -> None:
    network = networks(tiny()).student
    decayed, free = weight_decay_groups(network)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in free} <= {"bias", "weight"}
    assert all(p.ndim == 1 for p in free)
    assert all(p.ndim > 1 for p in decayed)
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"cls_head.last_layer.weight_g", "patch_head.last_layer.weight_g"}
    assert len(decayed) + len(free) + len(frozen) == len(names)


def two_layers() -> nn.Module:
    network = nn.ParameterList(
        [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    )
    network[0].grad, network[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    return network


@pytest.mark.parametrize(("mode", "expected"), [("global", [0.6, 0.8]), ("tensor", [1.0, 1.0])])
def test_clipping_by_hand(mode: str, expected: list[float]) -> None:
    network = two_layers()
    norm = clip_gradients(network, 1.0, mode=mode)
    assert float(norm) == pytest.approx(5)
    found = [float(p.grad.norm()) for p in network.parameters() if p.grad is not None]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"shared_head": True}, {"pooling": "mean"}], ids=str)
def test_activations_that_are_computed_again_change_no_gradient_and_are_not_kept(settings: dict[str, Any]) -> None:
    found = []
    for again in (False, True):
        config = tiny(**settings)
        both, groups = networks(config), random_views(config)
        if again:
            recompute_activations(both.student.backbone)
        kept: list[Tensor] = []

        def keep(tensor: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total, _ = step_losses(both, groups)
        total.backward()
        num_kept = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())
        found.append(([p.grad for p in both.student.parameters() if p.grad is not None], num_kept))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=0)
    assert found[1][1] < 0.9 * found[0][1]
