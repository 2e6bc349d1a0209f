"""The estimate of memory: sizes by hand, how parts grow, and the bytes of a step that is really taken."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from patchssl import memory_trace
from patchssl.config import Config
from patchssl.derived import derive
from patchssl.live_bytes import LiveBytes
from patchssl.memory import PARTS, Estimate, Setting, decoded_bytes, estimate, views_bytes
from patchssl.memory_advice import Advice, Advisor
from patchssl.memory_trace import Trace, network_without_memory, trace
from patchssl.recipes import parse_config
from patchssl.step_values import scheduled
from patchssl.structs import SampleKeys, ViewGroup
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import Trainer
from patchssl.views import MultiCrop

BASE: dict[str, Any] = {
    "views": {"global_size": 16, "local_size": 8, "num_local": 2},
    "model": {
        "arch": "vit_tiny_patch16_224",
        "patch_size": 8,
        "width": 16,
        "depth": 1,
        "num_heads": 2,
        "head_hidden": 16,
        "head_bottleneck": 8,
        "cls_prototypes": 12,
        "patch_prototypes": 8,
    },
    "train": {"steps": 4, "batch_size": 8},
}
# Large enough that no part is lost beside the others.
LARGER: dict[str, Any] = {
    "views": {"global_size": 64, "local_size": 32, "num_local": 3},
    "model": {"width": 48, "depth": 4, "head_hidden": 128, "head_bottleneck": 32, "cls_prototypes": 2048},
}
CPU = Setting(device="cpu", precision="fp32", workers=0)
BF16 = Setting(device="cpu", precision="bf16", workers=0)


def config(*changes: dict[str, Any]) -> Config:
    sections: dict[str, Any] = {}
    for change in (BASE, *changes):
        for name, values in change.items():
            sections[name] = {**sections.get(name, {}), **values}
    return parse_config(sections)


def test_weights_gradients_and_moments_by_hand() -> None:
    found = estimate(config(), CPU)
    # Patches 3 * 8 * 8 * 16 + 16, class token 16, positions 5 * 16, a block, the last norm.
    block = 2 * 32 + (16 * 48 + 48) + (16 * 16 + 16) + (16 * 64 + 64) + (64 * 16 + 16)
    backbone = 3088 + 16 + 80 + block + 32
    # Three layers, K directions of 8, and K norms that are fixed at 1.
    layers = 2 * (16 * 16 + 16) + (16 * 8 + 8)
    weights = backbone + layers + 12 * 8 + 12 + layers + 8 * 8 + 8
    assert (found.student, found.teacher) == (4 * weights, 4 * weights)
    trained = weights - 12 - 8
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)


def test_pixels_by_hand() -> None:
    # 2 global views of 16 px and 2 local ones of 8 px, 3 channels.
    pixels = 8 * 3 * (2 * 256 + 2 * 64)
    assert decoded_bytes(config(), 8) == pixels
    assert views_bytes(config(), 8) == 4 * pixels
    apart = config({"photometric": {"teacher_patch_probability": [0.5, 0.5], "cell_size": 8}})
    assert views_bytes(apart, 8) == 4 * (pixels + 8 * 3 * 2 * 256)


def test_loader_by_hand() -> None:
    pixels = decoded_bytes(config(), 8)
    alone = estimate(config(), Setting(device="cpu", precision="fp32", workers=0, image_bytes=1000))
    assert alone.loader == 2 * pixels + 8 * 1000
    two = estimate(config(), Setting(device="cpu", precision="fp32", workers=2, image_bytes=1000))
    assert two.loader == (2 * 4 + 2) * pixels + 2 * ((48 << 20) + 8 * 1000 + pixels)
    assert two.images == 0


def test_images_by_hand() -> None:
    """8 in a batch, of 1,000 bytes each; 100 in the source."""
    views = decoded_bytes(config(), 8)
    setting = Setting(device="cpu", precision="fp32", workers=2, image_bytes=1000, num_images=100, division="images")
    decoded = estimate(config(), setting)
    assert decoded.images == 2 * 8000 + (4 << 20) + views
    assert decoded.loader == (2 * 4 + 2) * 8000 + 2 * ((48 << 20) + 2 * 8000)
    large = estimate(config(), replace(setting, image_bytes=10 << 20))
    assert large.images == (8 * 10 + 64 + 4 << 20) + views
    resident = estimate(config(), replace(setting, division="resident"))
    assert resident.images == 100 * 1000 + (4 << 20) + views
    assert resident.loader == 0


def test_parts_add_up_and_where_they_are() -> None:
    on_cpu = estimate(config(), Setting(device="cpu", precision="fp32", workers=1, process_bytes=10_000))
    assert list(on_cpu.parts()) == list(PARTS)
    assert on_cpu.on_device == on_cpu.on_host == sum(on_cpu.parts().values())
    on_gpu = estimate(config(), Setting(device="cuda", precision="fp32", workers=1, process_bytes=10_000))
    assert on_gpu.allocator == 0
    assert on_gpu.on_host == on_gpu.process + on_gpu.loader
    assert on_gpu.on_device == sum(on_gpu.parts().values()) - on_gpu.on_host


def test_activations_grow_with_the_images() -> None:
    # Without patches nothing depends on the boxes that are drawn.
    two, three, four = (
        trace(config({"loss": {"patch_weight": 0.0}}), num, device="cpu", precision="fp32").activations
        for num in (2, 3, 4)
    )
    assert four - three == three - two > 0


def test_parts_of_a_batch_share_activations_and_nothing_else() -> None:
    whole, parts, half = (
        estimate(config(LARGER, {"train": train}), CPU)
        for train in ({"batch_size": 8}, {"batch_size": 8, "accumulate": 2}, {"batch_size": 4})
    )
    assert parts.num_images == half.num_images == 4
    assert parts.activations == half.activations < 0.6 * whole.activations
    assert (parts.views, parts.gradients) == (whole.views, whole.gradients)
    # Gradients of the first part are there from the beginning of the second.
    assert parts.backward >= half.backward + half.gradients // 2


def test_processes_share_a_batch_and_with_fsdp_weights() -> None:
    alone = estimate(config(LARGER), CPU)
    two = Setting(device="cpu", precision="fp32", workers=0, num_processes=2)
    ddp, fsdp = (estimate(config(LARGER, {"train": {"strategy": name}}), two) for name in ("ddp", "fsdp"))
    assert ddp.num_images == 4
    assert ddp.views == alone.views // 2
    assert ddp.optimizer == alone.optimizer
    assert (alone.exchange, ddp.exchange) == (0, alone.gradients)
    assert (fsdp.student, fsdp.teacher, fsdp.optimizer) == (
        alone.student // 2,
        alone.teacher // 2,
        alone.optimizer // 2,
    )


def test_blocks_that_are_computed_again_keep_less() -> None:
    kept, again = (
        trace(config(LARGER, {"train": {"checkpoint_activations": on}}), 8, device="cpu", precision="fp32")
        for on in (False, True)
    )
    assert again.activations < 0.7 * kept.activations
    assert again.peak < kept.peak
    assert again.gradients == kept.gradients


def test_bf16_halves_what_is_in_it() -> None:
    wide, narrow = estimate(config(LARGER), CPU), estimate(config(LARGER), BF16)
    for part in ("student", "teacher", "optimizer", "gradients", "views", "loader"):
        assert getattr(wide, part) == getattr(narrow, part)
    found = [trace(config(LARGER), 8, device="cpu", precision=precision) for precision in ("fp32", "bf16")]
    assert found[0].workspace == 2 * found[1].workspace
    assert 0.5 * found[0].activations < found[1].activations < 0.9 * found[0].activations


@pytest.mark.parametrize(
    ("train", "precision"),
    [({}, "bf16"), ({"checkpoint_activations": True}, "bf16"), ({"accumulate": 2}, "fp32")],
    ids=str,
)
def test_deep_networks_are_what_shallow_ones_say(
    monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], precision: str
) -> None:
    deep = config(LARGER, {"model": {"depth": 6, "drop_path": 0.0}, "train": train})
    found = trace(deep, 6, device="cpu", precision=precision)
    monkeypatch.setattr(memory_trace, "_DEEP", 6)
    assert found == trace(deep, 6, device="cpu", precision=precision)


def taken(settings: Config, precision: str) -> tuple[int, int, int]:
    """Peak bytes of the tensors of a step that is really taken, those of before left out, and the workspace."""
    settings = derive(settings, 100).config
    networks = StudentTeacher(settings)
    trainer = Trainer(networks, device="cpu", precision=precision)
    num = settings.train.batch_size
    keys = SampleKeys(torch.zeros(num, dtype=torch.int64), torch.arange(num))
    crops = MultiCrop(settings.views, settings.train.seed).plan(torch.tensor([(375, 500)] * num), keys)
    views = [
        ViewGroup(torch.randint(256, (*found.flipped.shape, 3, side, side), dtype=torch.uint8), found)
        for side, found in zip(crops.sides, crops.boxes, strict=True)
    ]
    with LiveBytes([*networks.student.parameters(), *networks.teacher.parameters()]) as live:
        trainer.losses(views, keys, scheduled(settings, 2, 4))
    gradients = sum(weight.grad.nbytes for weight in networks.student.parameters() if weight.grad is not None)
    return live.peak, networks.workspace.held_bytes, gradients


@pytest.mark.parametrize(
    ("precision", "sections"),
    [
        ("fp32", {}),
        ("bf16", {"train": {"accumulate": 2}}),
        ("bf16", {"train": {"checkpoint_activations": True}}),
        ("fp32", {"loss": {"patch_weight": 0.0}}),
        ("bf16", {"loss": {"chunk_mib": 1}, "model": {"cls_prototypes": 4096}}),
    ],
    ids=str,
)
def test_a_step_that_is_taken_takes_what_is_estimated(precision: str, sections: dict[str, Any]) -> None:
    settings = config(LARGER, {"train": {"batch_size": 12}}, sections)
    peak, workspace, gradients = taken(settings, precision)
    found = estimate(settings, Setting(device="cpu", precision=precision, workers=0))
    assert found.gradients == gradients
    traced = trace(settings, 12 // settings.train.accumulate, device="cpu", precision=precision)
    assert traced.workspace == pytest.approx(workspace, rel=0.01)
    in_a_step = found.gradients + found.activations + found.backward + found.loss + found.views
    assert in_a_step == pytest.approx(peak, rel=0.1)


def test_networks_of_any_size_have_their_weights_counted_without_them() -> None:
    network = network_without_memory(config({"model": {"width": 8192, "depth": 40, "num_heads": 64}}))
    assert sum(weight.nbytes for weight in network.parameters()) > 100 << 30
    assert all(weight.is_meta for weight in network.parameters())


def by_image(settings: Config, num_images: int, *, device: str, precision: str) -> Trace:
    """A part takes 1,000,000 bytes an image, half of that where blocks are computed again or numbers are short."""
    each = 1_000_000 // (1 + settings.train.checkpoint_activations) // (2 if precision == "bf16" else 1)
    return Trace(activations=num_images * each, workspace=0, gradients=0, peak=num_images * each, on_heap=0)


def advice(settings: Config, setting: Setting, activations: int) -> list[Advice]:
    """What to change so that activations of so many bytes fit besides all else."""
    now = estimate(settings, setting, tracer=by_image)
    most = (
        now.on_device - by_image(settings, now.num_images, device="cpu", precision=setting.precision).peak + activations
    )
    return list(Advisor(settings, setting, most, tracer=by_image).advice())


def test_advice_by_hand() -> None:
    settings = config({"train": {"batch_size": 24}})
    found = {each.change: each for each in advice(settings, CPU, 7_000_000)}
    # 24 images of 1 MB: 12 in bf16 or computed again, 6 in 4 parts (3 leave 8), 6 in 2 parts computed again.
    assert list(found) == [
        "--precision bf16",
        "train.accumulate=4",
        "train.checkpoint_activations=true",
        "train.checkpoint_activations=true train.accumulate=2",
        "--batch-size 7",
    ]
    assert [each.fits for each in found.values()] == [False, True, False, True, True]
    assert found["train.accumulate=4"].estimate.activations == 6_000_000


def test_advice_is_left_out_where_it_saves_nothing_or_is_followed() -> None:
    settings = config({"train": {"batch_size": 4, "accumulate": 4, "checkpoint_activations": True}})
    assert advice(settings, BF16, 1) == []


def test_advice_for_gpus_names_more_of_them() -> None:
    gpu = Setting(device="cuda", precision="bf16", workers=0)
    changes = [each.change for each in advice(config({"train": {"batch_size": 24}}), gpu, 13_000_000)]
    assert "2 processes" in changes
    assert "2 processes, train.strategy=fsdp" in changes


def test_an_estimate_holds_numbers_only() -> None:
    found = estimate(config(), CPU)
    assert isinstance(found, Estimate)
    assert all(isinstance(num, int) for num in found.parts().values())
