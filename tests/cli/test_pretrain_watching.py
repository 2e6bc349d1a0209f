"""`patchssl pretrain --knn-data --tensorboard` as a user meets it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from patchssl.cli.main import main
from patchssl.event_file import tag

TINY = (
    "data.division=views "
    "views.global_size=16 views.local_size=8 views.num_local=1 model.arch=vit_tiny_patch16_224 model.patch_size=8 "
    "model.width=16 model.depth=1 model.num_heads=2 model.head_hidden=16 model.head_bottleneck=8 "
    "model.cls_prototypes=12 model.patch_prototypes=8 train.batch_size=4 train.steps=5 log.every_steps=2 "
    "log.knn_every_steps=3"
)
SETTINGS = [part for setting in TINY.split() for part in ("--set", setting)] + ["--workers", "0", "--device", "cpu"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes, with a name that YAML would take for something else."""
    generator = np.random.default_rng(0)
    root = tmp_path / "data: 5"
    for part, count in (("train", 8), ("test", 4)):
        for number in range(count):
            file = root / part / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(file)
    return root


def pretrain(data: Path, run: Path, *options: str) -> int:
    return main(["pretrain", str(data / "train"), "--output", str(run), *options])


def lines_of(run: Path) -> dict[int, dict[str, Any]]:
    """The last line of each step."""
    return {line["step"]: line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


def events_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(at.step, at.value) for at in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_both_follow_a_run_through_a_resume(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert pretrain(data, run, *SETTINGS, "--knn-data", str(data), "--tensorboard") == 0
    settings = yaml.safe_load((run / "config.yaml").read_text())["log"]
    assert (settings["knn_data"], settings["tensorboard"]) == (str(data), True)
    first = lines_of(run)
    assert {step: "knn_top1" in line for step, line in first.items()} == {0: False, 2: True, 4: True}
    assert pretrain(data, run, "--resume", "--set", "train.steps=9") == 0
    found = lines_of(run)
    assert {step for step, line in found.items() if "knn_top1" in line} == {2, 4, 5, 8}
    shown = events_of(run)
    for name in {name for line in found.values() for name in line} - {"step"}:
        wanted: list[Any] = [
            (step, pytest.approx(line[name], rel=1e-6)) for step, line in found.items() if name in line
        ]
        assert shown.pop(tag(name)) == wanted
    assert not shown
    log = (run / "log.txt").read_text()
    assert f"k-NN of the teacher every 3 steps: 4 images of {data}, each by the 8 nearest of 8, of 2 classes" in log
    assert "step 3: k-NN of the teacher" in log
    first_end, second_end = [line for line in log.splitlines() if "where the time went: " in line]
    assert "INFO 20 images in" in first_end
    assert "since step 5, where this start went on: 16 images in" in second_end
    for told in (first_end, second_end):
        assert "where the time went: waiting for data " in told
        assert ", measuring the teacher " in told
        assert "; of the waiting, since no loader processes were asked for: reading " in told


def test_where_the_time_went_is_said_unless_quiet_is_asked_for(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(data, tmp_path / "run", *SETTINGS, "--workers", "2") == 0
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "where the time went" in line]
    assert ", backward " in told
    assert "; beside that in 2 loader processes: reading " in told
    assert pretrain(data, tmp_path / "quiet", *SETTINGS, "--quiet") == 0
    assert "where the time went" not in capsys.readouterr().err
    assert "where the time went" in (tmp_path / "quiet" / "log.txt").read_text()


def test_a_run_that_is_replaced_leaves_no_events(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert pretrain(data, run, *SETTINGS, "--tensorboard") == 0
    assert pretrain(data, run, *SETTINGS, "--overwrite", "--no-tensorboard") == 0
    assert not list((run / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--knn-data", "none"], "log.knn_data: none does not exist"),
        (["--knn-data", "TRAIN"], "log.knn_data: "),
        (["--knn-data", "DATA", "--set", "log.knn_train_images=1"], "has 2 classes; take at least 2"),
    ],
)
def test_bad_data_are_refused_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    places = {"TRAIN": str(data / "train"), "DATA": str(data)}
    assert pretrain(data, tmp_path / "run", *SETTINGS, *[places.get(option, option) for option in options]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert words in error
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_told_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert pretrain(data, tmp_path / "run", *SETTINGS, "--tensorboard") == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert "pip install 'patchssl[log]'" in error
    assert not (tmp_path / "run").exists()
