"""The training loop: exactness, resuming, schedules, and what stops it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchssl.checkpoint import write_checkpoint
from patchssl.checkpoint_folder import checkpoints
from patchssl.config import Config
from patchssl.data.sources import open_unlabelled
from patchssl.derived import derive
from patchssl.errors import CheckpointError, DataError, TrainingError
from patchssl.pretrain import pretrain
from patchssl.recipes import parse_config
from patchssl.run_folder import prepare_run
from patchssl.step_values import scheduled
from patchssl.student_teacher import StudentTeacher

TINY: dict[str, Any] = {
    "views": {"global_size": 16, "local_size": 8, "num_local": 2, "global_scale": [0.4, 1.0]},
    "photometric": {"patch_probability": 0.5, "cell_size": 8},
    "model": {
        "arch": "vit_tiny_patch16_224",
        "patch_size": 8,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "drop_path": 0.2,
        "head_hidden": 16,
        "head_bottleneck": 8,
        "cls_prototypes": 12,
        "patch_prototypes": 8,
    },
    "train": {"steps": 7, "batch_size": 4, "learning_rate": 0.01, "checkpoint_every_steps": 100, "keep_last": 2},
    "log": {"every_steps": 1},
}


def tiny(**sections: dict[str, Any]) -> Config:
    return parse_config({name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {*TINY, *sections}})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(10):
        pixels = generator.integers(256, size=(20 + number, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run(config: Config, images: Path, output: Path, **options: Any) -> list[dict[str, float]]:
    """Train as the command line does; returns what is in metrics.jsonl, the last line of a step counting."""
    resume = options.pop("resume", False)
    prepare_run(output, config, device="cpu", resume=resume, overwrite=options.pop("overwrite", False))
    settings: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0, **options}
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        source = open_unlabelled(images)
        config = derive(config, len(source)).config
        pretrain(StudentTeacher(config), source, output, resume=resume, **settings)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return list({line["step"]: line for line in lines}.values())


def losses(lines: list[dict[str, float]]) -> list[float]:
    return [line["loss"] for line in lines]


class StopAfter:
    """Asks to stop once a number of steps has been done."""

    def __init__(self, num_steps: int) -> None:
        self.left = num_steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def test_a_run_folder_holds_what_the_contract_says(images: Path, tmp_path: Path) -> None:
    config = tiny(train={"checkpoint_every_steps": 3})
    lines = run(config, images, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "config.yaml",
        "environment.json",
        "history.jsonl",
        "metrics.jsonl",
    ]
    assert [line["step"] for line in lines] == list(range(7))
    wanted = {"epoch", "images", "loss", "loss_cls", "loss_patch", "lr", "weight_decay", "momentum", "images_per_s"}
    assert all(wanted <= set(line) for line in lines)
    assert {line["patch_weight"] for line in lines} == {1.0}
    assert lines[-1]["images"] == 28
    assert all(line["loss"] == pytest.approx(line["loss_cls"] + line["loss_patch"], rel=1e-5) for line in lines)
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["latest", *(f"step-0000000{step}.pt{end}" for step in (6, 7) for end in ("", ".sha256"))]
    assert (tmp_path / "run" / "checkpoints" / "latest").resolve().name == "step-00000007.pt"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equal_seeds_give_equal_losses_with_any_number_of_workers(images: Path, tmp_path: Path, precision: str) -> None:
    runs = [
        losses(run(tiny(), images, tmp_path / str(workers), workers=workers, precision=precision)) for workers in (0, 2)
    ]
    assert runs[0] == runs[1]
    other = losses(run(tiny(train={"seed": 1}), images, tmp_path / "other", precision=precision))
    assert all(a != b for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_stopped_within_an_epoch_goes_on_exactly(images: Path, tmp_path: Path, stop: int) -> None:
    whole = run(tiny(), images, tmp_path / "whole")
    before = run(tiny(), images, tmp_path / "parts", stop_requested=StopAfter(stop))
    assert [line["step"] for line in before] == list(range(stop))
    # With other workers; nothing depends on the global generator, which begins anew.
    after = run(tiny(), images, tmp_path / "parts", resume=True, workers=2)
    assert losses(after) == losses(whole)
    ends = [torch.load(tmp_path / name / "checkpoints" / "latest") for name in ("whole", "parts")]
    torch.testing.assert_close(ends[0]["teacher"], ends[1]["teacher"], rtol=0, atol=0)
    torch.testing.assert_close(ends[0]["centers"], ends[1]["centers"], rtol=0, atol=0)


@pytest.mark.parametrize("sections", [{}, {"center": "sinkhorn"}, {"center": "position"}], ids=str)
def test_a_batch_in_parts_gives_the_losses_of_the_whole(images: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    whole, parts = (
        run(
            tiny(model={"drop_path": 0.3}, train={"accumulate": num, "learning_rate": 1e-3}, loss=sections),
            images,
            tmp_path / str(num),
        )
        for num in (1, 2)
    )
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    for name in ("loss_cls", "loss_patch", "gradient_norm", "teacher_entropy_patch", "kl_patch", "patch_pairs"):
        assert [line[name] for line in parts] == pytest.approx([line[name] for line in whole], rel=1e-4)
    ends = [torch.load(tmp_path / str(num) / "checkpoints" / "latest") for num in (1, 2)]
    torch.testing.assert_close(ends[0]["centers"], ends[1]["centers"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ends[0]["student"], ends[1]["student"], rtol=1e-3, atol=1e-4)


def test_a_finished_run_that_is_resumed_does_nothing(images: Path, tmp_path: Path) -> None:
    first = run(tiny(), images, tmp_path / "run")
    assert run(tiny(), images, tmp_path / "run", resume=True) == first


def test_the_student_learns_what_the_teacher_says(images: Path, tmp_path: Path) -> None:
    # A teacher that stays as it is, sharpened: its targets can be learned, and learning them lowers the loss.
    train = {"steps": 80, "ema_momentum": 1.0, "learning_rate": 0.003}
    lines = run(tiny(train=train), images, tmp_path / "run")
    assert np.mean(losses(lines)[-10:]) < np.mean(losses(lines)[:10]) - 0.2


@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"patch_weight": 0.0}},
        {"views": {"num_local": 0}},
        {"views": {"num_global": 3, "shared_geometry": True}},
        {
            "loss": {"average": "flat", "matching": "authors", "center": "position"},
            "model": {"shared_head": True, "patch_prototypes": 12},
            "train": {"clip_mode": "tensor"},
        },
        {"train": {"batch_size": 23}},
        {"loss": {"center": "sinkhorn"}},
    ],
    ids=["dino", "no-locals", "three-globals", "authors", "batch-larger-than-data", "sinkhorn"],
)
def test_variants_train_and_resume(images: Path, tmp_path: Path, sections: dict[str, dict[str, Any]]) -> None:
    config = tiny(**sections)
    whole = run(config, images, tmp_path / "whole")
    assert np.isfinite(losses(whole)).all()
    run(config, images, tmp_path / "parts", stop_requested=StopAfter(3))
    assert losses(run(config, images, tmp_path / "parts", resume=True)) == losses(whole)
    if not config.loss.patch_weight:
        assert {line["loss_patch"] for line in whole} == {0.0}


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(images: Path, tmp_path: Path) -> None:
    run(tiny(), images, tmp_path / "run", stop_requested=StopAfter(2))
    kept = (tmp_path / "run" / "checkpoints" / "step-00000002.pt").read_bytes()
    # Weights at infinity, as after a diverged update.
    path = tmp_path / "run" / "checkpoints" / "step-00000002.pt"
    content = torch.load(path)
    broken = {name: value * float("inf") for name, value in content["student"].items()}
    write_checkpoint(path, {**content, "student": broken}, step=2)
    words = r"skipped 2 steps in a row, with train.max_skipped_steps at 2; in step 3 .* student's weights are not fini"
    with pytest.raises(TrainingError, match=words):
        run(tiny(train={"max_skipped_steps": 2}), images, tmp_path / "run", resume=True)
    assert [p.name for p in checkpoints(path.parent)] == ["step-00000000.pt", "step-00000002.pt"]
    assert len(kept) > 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]


def test_unreadable_images_are_left_out_listed_and_too_many_stop(images: Path, tmp_path: Path) -> None:
    for number in range(30):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(images / f"more{number}.jpg")
    cut = images / "more3.jpg"
    cut.write_bytes(cut.read_bytes()[:-60])
    run(tiny(train={"steps": 20}), images, tmp_path / "run")
    listed = (tmp_path / "run" / "unreadable.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == [str(cut)]
    for number in range(6):
        (images / f"more{number}.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"6 of 40 images are unreadable, more than the allowed 5.0%"):
        run(tiny(train={"steps": 20}), images, tmp_path / "other")


def test_a_folder_that_holds_something_is_not_written_over(images: Path, tmp_path: Path) -> None:
    run(tiny(), images, tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError, match="already holds a run; go on with it by --resume, replace it by --overwr"):
        run(tiny(), images, tmp_path / "run")
    with pytest.raises(CheckpointError, match="exists and is not a run folder"):
        run(tiny(), images, images)
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        run(tiny(), images, tmp_path / "none", resume=True)
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before
    assert not (tmp_path / "none").exists()
    assert losses(run(tiny(), images, tmp_path / "run", overwrite=True)) == losses(run(tiny(), images, tmp_path / "b"))


def test_resuming_with_other_data_or_another_network_is_refused(images: Path, tmp_path: Path) -> None:
    run(tiny(), images, tmp_path / "run", stop_requested=StopAfter(2))
    words = r"model.width is 16 in the checkpoint and 32 in the configuration; resume with the settings of the"
    with pytest.raises(CheckpointError, match=words):
        run(tiny(model={"width": 32}), images, tmp_path / "run", resume=True)
    (images / "0.png").unlink()
    with pytest.raises(CheckpointError, match="was trained on 10 images, DATA holds 9"):
        run(tiny(), images, tmp_path / "run", resume=True)


def test_scheduled_values_by_hand() -> None:
    config = tiny(
        train={
            "learning_rate": 1.0,
            "final_learning_rate": 0.0,
            "warmup_fraction": 0.2,
            "weight_decay": 0.1,
            "final_weight_decay": 0.3,
            "ema_momentum": 0.9,
            "freeze_last_layer_fraction": 0.1,
        },
        loss={
            "teacher_temperature": 0.07,
            "teacher_temperature_start": 0.04,
            "teacher_temperature_warmup_fraction": 0.4,
        },
    )
    first, after_warmup, middle = (scheduled(config, step, 10) for step in (0, 2, 6))
    assert (first.learning_rate, after_warmup.learning_rate, middle.learning_rate) == pytest.approx((0, 1, 0.5))
    assert scheduled(config, 5, 10).weight_decay == pytest.approx(0.2)
    assert (first.momentum, scheduled(config, 5, 10).momentum) == pytest.approx((0.9, 0.95))
    assert [scheduled(config, step, 10).teacher_temperature for step in (0, 1, 3, 9)] == pytest.approx(
        [0.04, 0.05, 0.07, 0.07]
    )
    assert [scheduled(config, step, 10).prototypes_frozen for step in (0, 1)] == [True, False]


def test_the_patch_weight_warms_up_and_the_loss_and_its_line_follow(images: Path, tmp_path: Path) -> None:
    loss = {"patch_weight": 2.0, "patch_weight_start": 0.5, "patch_weight_warmup_fraction": 0.55}
    lines = run(tiny(loss=loss), images, tmp_path / "run")
    # round(0.55 * 7) = 4 steps from 0.5 to 2, the last with the full weight.
    assert [line["patch_weight"] for line in lines] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0])
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss_cls"] + line["patch_weight"] * line["loss_patch"], rel=1e-5)


WARMING = {
    "learning_rate": (0.0, 1.0),
    "teacher_temperature": (0.02, 0.07),
    "patch_weight": (0.25, 2.0),
}


def warming(fraction: float) -> Config:
    """Everything that warms up, over the same part of the steps."""
    return tiny(
        train={"learning_rate": 1.0, "warmup_fraction": fraction, "ema_momentum": 0.9},
        loss={
            "teacher_temperature": 0.07,
            "teacher_temperature_start": 0.02,
            "teacher_temperature_warmup_fraction": fraction,
            "patch_weight": 2.0,
            "patch_weight_start": 0.25,
            "patch_weight_warmup_fraction": fraction,
        },
    )


@pytest.mark.parametrize(
    ("num_steps", "num_warmup_steps"), [(1, 0), (7, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (7, 5)]
)
def test_short_warmups_begin_at_the_start_and_end_at_the_full_value(num_steps: int, num_warmup_steps: int) -> None:
    config = warming((num_warmup_steps or 0.4) / num_steps)  # 0.4 of a step is rounded to none
    steps = [scheduled(config, step, num_steps) for step in range(num_steps)]
    for name, (start, full) in WARMING.items():
        values = [getattr(step, name) for step in steps]
        # A warm-up of a single step has room for the full value only, one of none is no warm-up.
        assert values[0] == pytest.approx(start if num_warmup_steps > 1 else full)
        assert values[max(0, num_warmup_steps - 1)] == pytest.approx(full)
        rising = values[: max(1, num_warmup_steps)]
        assert rising == sorted(rising)
        if name != "learning_rate":
            assert values[num_warmup_steps:] == pytest.approx([full] * (num_steps - num_warmup_steps))


def test_schedules_by_hand_over_five_steps() -> None:
    steps = [scheduled(warming(0.6), step, 5) for step in range(5)]  # 3 steps of warm-up
    assert [step.teacher_temperature for step in steps] == pytest.approx([0.02, 0.045, 0.07, 0.07, 0.07])
    assert [step.patch_weight for step in steps] == pytest.approx([0.25, 1.125, 2, 2, 2])
    # Then half a cosine over 2 steps: 1, and halfway to 1e-6.
    assert [step.learning_rate for step in steps] == pytest.approx([0, 0.5, 1, 1, 0.5], abs=1e-5)
    assert steps[0].momentum == 0.9
