"""Several processes train as one does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.fsdp
import torch.distributed.tensor
from PIL import Image

from patchssl import ranks
from patchssl.config import Config
from patchssl.data.sources import open_unlabelled
from patchssl.errors import ConfigError
from patchssl.pretrain import pretrain
from patchssl.process_checks import check_processes
from patchssl.recipes import parse_config
from patchssl.run_folder import prepare_run
from patchssl.student_teacher import StudentTeacher

Together = Callable[..., list[int]]

TINY: dict[str, Any] = {
    "views": {"global_size": 16, "local_size": 8, "num_local": 2},
    "photometric": {"patch_probability": 0.5, "cell_size": 8},
    "model": {
        "arch": "vit_tiny_patch16_224",
        "patch_size": 8,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "drop_path": 0.0,
        "head_hidden": 16,
        "head_bottleneck": 8,
        "cls_prototypes": 12,
        "patch_prototypes": 9,
    },
    "train": {
        "steps": 5,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "warmup_fraction": 0.0,
        "ema_momentum": 0.9,
        "checkpoint_every_steps": 100,
    },
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


def train(config: Config, images: Path, run: Path, *, precision: str = "fp32", stop_after: int | None = None) -> None:
    """Begin a run or go on with it, in this process or in all that have joined."""
    resume = (run / "checkpoints" / "latest").exists()
    if ranks.is_main():
        prepare_run(run, config, device="cpu", resume=resume, overwrite=False)
    ranks.wait_for_all()
    steps = iter(range(1, 1000))
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        pretrain(
            StudentTeacher(config),
            open_unlabelled(images),
            run,
            device="cpu",
            precision=precision,
            workers=0,
            resume=resume,
            # Asked of one process, as when a signal reaches one first.
            stop_requested=lambda: next(steps) == stop_after and ranks.rank() == ranks.world_size() - 1,
        )


def lines(run: Path) -> list[dict[str, float]]:
    """What is in metrics.jsonl besides times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: line[name] for name in line if not name.startswith(("images_per_s", "data_wait", "seconds_"))}
        for line in found
    ]


def newest(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "latest", weights_only=True)
    return content


def assert_equal_runs(run: Path, other: Path, *, relative: float = 1e-5, absolute: float = 1e-5) -> None:
    """All that is measured in each step, and all that the next one depends on."""
    assert len(lines(run)) == len(lines(other))
    for ours, theirs in zip(lines(run), lines(other), strict=True):
        assert ours == pytest.approx(theirs, rel=relative, abs=1e-7)
    ours, theirs = newest(run), newest(other)
    for part in ("student", "teacher", "centers", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=relative, atol=absolute)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"koleo_weight": 0.1}},
        {"train": {"accumulate": 2, "clip_gradient": 0.05, "clip_mode": "tensor"}, "loss": {"koleo_weight": 0.1}},
        {"train": {"accumulate": 2}, "loss": {"average": "flat", "center": "position"}},
        {"train": {"clip_gradient": 0.05}, "loss": {"center": "sinkhorn"}, "views": {"shared_geometry": True}},
        {
            "train": {"freeze_last_layer_fraction": 0.4},
            "loss": {"patch_weight": 0},
            "model": {"norm_last_layer": False},
        },
    ],
    ids=["koleo", "parts-tensor-koleo", "parts-flat-position", "clipped-sinkhorn-shared", "no-patches"],
)
def test_two_processes_train_as_one_does(
    in_processes: Together, images: Path, tmp_path: Path, sections: dict[str, Any], strategy: str
) -> None:
    train(tiny(**sections), images, tmp_path / "one")
    config = tiny(**{**sections, "train": {**sections.get("train", {}), "strategy": strategy}})
    assert in_processes(lambda: train(config, images, tmp_path / "two")) == [0, 0]
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_bf16_differs_by_its_rounding(in_processes: Together, images: Path, tmp_path: Path, strategy: str) -> None:
    config = tiny(train={"strategy": strategy, "accumulate": 2}, loss={"koleo_weight": 0.1})
    alone = tiny(train={"accumulate": 2}, loss={"koleo_weight": 0.1})
    train(alone, images, tmp_path / "one", precision="bf16")
    assert in_processes(lambda: train(config, images, tmp_path / "two", precision="bf16")) == [0, 0]
    ours, theirs = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert ours[0] == pytest.approx(theirs[0], rel=1e-3)
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-2)
    assert newest(tmp_path / "two")["student"]["backbone.cls_token"].dtype == torch.float32


def test_a_run_goes_on_with_other_processes_and_another_strategy(
    in_processes: Together, images: Path, tmp_path: Path
) -> None:
    config = tiny(train={"steps": 6, "strategy": "ddp"})
    train(config, images, tmp_path / "whole")
    run = tmp_path / "parts"
    assert in_processes(lambda: train(config, images, run, stop_after=2)) == [0, 0]
    train(config, images, run, stop_after=2)
    sharded = tiny(train={"steps": 6, "strategy": "fsdp"})
    assert in_processes(lambda: train(sharded, images, run)) == [0, 0]
    assert [line["step"] for line in lines(run)] == list(range(6))
    assert_equal_runs(tmp_path / "whole", run)
    # And the other way round: what shares were gathered into is what one process holds.
    assert newest(run)["optimizer"].keys() == newest(tmp_path / "whole")["optimizer"].keys()


# With DDP's three, since the order in which two gradients are summed up makes no difference.
@pytest.mark.parametrize(("strategy", "num"), [("ddp", 3), ("fsdp", 2)])
def test_resuming_with_as_many_processes_is_exact(
    in_processes: Together, images: Path, tmp_path: Path, strategy: str, num: int
) -> None:
    config = tiny(
        train={"batch_size": 12, "accumulate": 2, "strategy": strategy, "steps": 6, "learning_rate": 0.01},
        model={"drop_path": 0.2, "width": 32, "head_hidden": 256},
    )
    assert in_processes(lambda: train(config, images, tmp_path / "whole"), num=num) == [0] * num
    assert in_processes(lambda: train(config, images, tmp_path / "parts", stop_after=3), num=num) == [0] * num
    assert len(lines(tmp_path / "parts")) == 3
    assert in_processes(lambda: train(config, images, tmp_path / "parts"), num=num) == [0] * num
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole", relative=0, absolute=0)


@pytest.mark.parametrize(
    ("train", "loss", "num", "expected"),
    [
        ({}, {}, 1, "alone"),
        ({"strategy": "ddp"}, {}, 1, "alone"),
        ({}, {}, 2, "ddp"),
        ({"strategy": "fsdp"}, {}, 8, "fsdp"),
        ({"accumulate": 2}, {}, 4, "ddp"),
        ({"strategy": "fsdp"}, {}, 1, "train.strategy is fsdp, .* and there is one; start several"),
        ({}, {}, 3, "batch_size is 8 and .*: 3 processes times train.accumulate 1 need a multiple of 3; .* 6 or 9"),
        ({}, {}, 16, "16 processes times train.accumulate 1 need a multiple of 16; take --batch-size 16"),
        ({"accumulate": 3}, {}, 1, "1 process times train.accumulate 3 need a multiple of 3; take --batch-size 6 or 9"),
        ({"accumulate": 4}, {}, 4, "4 processes times train.accumulate 4 need a multiple of 16; take --batch-size 16"),
        ({"accumulate": 8}, {"koleo_weight": 0.1}, 1, "leaves one image in a part, .* train.accumulate of at most 4"),
    ],
)
def test_which_numbers_of_processes_can_train(
    train: dict[str, Any], loss: dict[str, Any], num: int, expected: str
) -> None:
    config = tiny(train=train, loss=loss)
    if len(expected) < 6:
        assert check_processes(config, "cpu", num) == expected
        return
    with pytest.raises(ConfigError, match=expected):
        check_processes(config, "cpu", num)


def test_the_one_device_of_a_mac_is_not_shared() -> None:
    with pytest.raises(ConfigError, match="2 processes cannot share the one device mps"):
        check_processes(tiny(), "mps", 2)
