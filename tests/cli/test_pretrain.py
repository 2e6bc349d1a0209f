"""`patchssl pretrain` as a user meets it: what it writes, how it stops, and what it says of bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from patchssl.cli.main import main

SETTINGS = {
    "data.division": "views",  # else images as small as these are kept decoded, without loader processes
    "views.global_size": 16,
    "views.local_size": 8,
    "views.num_local": 2,
    "model.arch": "vit_tiny_patch16_224",
    "model.patch_size": 8,
    "model.width": 16,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.head_hidden": 16,
    "model.head_bottleneck": 8,
    "model.cls_prototypes": 12,
    "model.patch_prototypes": 8,
    "train.batch_size": 4,
    "train.steps": 5,
    "log.every_steps": 1,
}
TINY = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")] + ["--workers", "0"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number in range(8):
        file = folder / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 24), (30 * number, 200 - 20 * number, 90)).save(file)
    return folder


def steps_in(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_from_start_to_end_and_its_folder(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", str(images), "--output", str(run), *TINY, "--seed", "3", "--precision", "fp32"]) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert list(config) == ["data", "views", "photometric", "model", "loss", "train", "log"]
    assert config["train"]["seed"] == 3
    derived = {name: config["train"][name] for name in ("learning_rate", "ema_momentum", "warmup_fraction")}
    assert derived == {"learning_rate": 3e-3, "ema_momentum": 0.9, "warmup_fraction": 0.1}
    log = (run / "log.txt").read_text()
    assert "5 steps of 4" in log
    for name, value in derived.items():
        assert f"train.{name} = {value:g}: DINO's " in log
    assert json.loads((run / "environment.json").read_text())["torch"]
    assert steps_in(run) == [0, 1, 2, 3, 4]


def test_resume_takes_the_configuration_of_the_run(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", str(images), "--output", str(run), *TINY]) == 0
    assert main(["pretrain", str(images), "--output", str(run), "--resume", "--set", "train.steps=8"]) == 0
    assert steps_in(run) == list(range(8))


def test_what_was_derived_stays_when_a_run_is_resumed_for_longer(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--set", "train.steps=300", "--set", "log.every_steps=100", "--set", "train.checkpoint_every_steps=100"]
    assert main(["pretrain", str(images), "--output", str(run), *TINY]) == 0
    before = yaml.safe_load((run / "config.yaml").read_text())["train"]
    assert main(["pretrain", str(images), "--output", str(run), "--resume", *more]) == 0
    after = yaml.safe_load((run / "config.yaml").read_text())["train"]
    assert after["steps"] == 300
    # Derived anew for 300 steps it would be 1 - 25 / 300.
    assert (before["ema_momentum"], after["ema_momentum"]) == (0.9, 0.9)
    assert (run / "log.txt").read_text().count("train.ema_momentum = ") == 1


def start(images: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """Train in a process of its own, for long, until a checkpoint of some steps is there."""
    command = [sys.executable, "-m", "patchssl", "pretrain", str(images), "--output", str(run), *TINY]
    command += ["--set", "train.steps=1000000", "--set", "train.checkpoint_every_steps=5", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    until = time.monotonic() + 120
    latest = run / "checkpoints" / "latest"
    while not latest.exists() or latest.resolve().name == "step-00000000.pt":
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < until
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(
    images: Path, tmp_path: Path, number: signal.Signals, code: int, workers: int
) -> None:
    run = tmp_path / "run"
    process = start(images, run, "--workers", str(workers))
    # As a terminal and schedulers do, to all processes, those of the loader too.
    os.killpg(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert "saving after this step, then stopping" in told
    assert "Traceback" not in told
    last = steps_in(run)[-1]
    assert (run / "checkpoints" / "latest").resolve().name == f"step-{last + 1:08d}.pt"
    assert main(["pretrain", str(images), "--output", str(run), "--resume", "--set", f"train.steps={last + 3}"]) == 0
    assert steps_in(run)[-1] == last + 2


def test_a_full_disk_stops_the_run_and_keeps_what_was_saved(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", str(images), "--output", str(run), *TINY]) == 0
    kept = (run / "checkpoints" / "step-00000005.pt").read_bytes()
    # No file may grow beyond half a checkpoint: writes fail as they do on a full disk.
    limited = (
        "import resource, signal, sys\n"
        "from patchssl.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(kept) // 2}, {len(kept) // 2}))\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", limited, "pretrain", str(images), "--output", str(run), "--resume"]
    done = subprocess.run([*command, "--set", "train.steps=9"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "step-00000009.pt" in errors[0]
    assert "free some space and go on with --resume" in errors[0]
    left = [f"step-0000000{step}.pt{end}" for step in (0, 5) for end in ("", ".sha256")]
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == ["latest", *left]
    assert (run / "checkpoints" / "latest").read_bytes() == kept
    assert main(["pretrain", str(images), "--output", str(run), "--resume", "--set", "train.steps=9"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["EMPTY"], "holds no image files (it is empty)"),
        (["TEXTS"], "holds no image files (it holds 2 .txt)"),
        (["MISSING"], "does not exist; give a folder of images"),
        (["IMAGES", "--set", "train.epohcs=1"], "unknown key train.epohcs; did you mean epochs?"),
        (["IMAGES", "--set", "views.global_size=30"], "global_size is 30 px, which the patch of 8 px does not divide"),
        (
            ["IMAGES", "--config", "nonsense"],
            "'nonsense' is neither a file nor a recipe; recipes: authors, authors-ci",
        ),
        (["IMAGES", "--set", "model.arch=vit_huge_patch99"], "'vit_huge_patch99' is unknown to timm"),
        (["IMAGES", "--set", "model.arch=swin_tiny_patch4_window7_224"], "pretraining takes ViTs"),
        (["IMAGES", "--set", "model.num_heads=5"], "cannot be built"),
        (["IMAGES", "--resume"], "holds no checkpoint to resume from"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text("not an image")
    places = {"EMPTY": tmp_path / "empty", "TEXTS": tmp_path / "texts", "IMAGES": images, "MISSING": tmp_path / "none"}
    data, *options = arguments
    code = main(["pretrain", str(places[data]), "--output", str(tmp_path / "run"), *TINY, *options])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert code == 1
    assert len(errors) == 1
    assert words in errors[0]
    assert not (tmp_path / "run").exists()


def test_a_refused_resume_leaves_the_configuration_of_the_run(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", str(images), "--output", str(run), *TINY]) == 0
    before = (run / "config.yaml").read_bytes()
    resume = ["pretrain", str(images), "--output", str(run), "--resume"]
    assert main([*resume, "--set", "model.cls_prototypes=16", "--set", "model.num_heads=4"]) == 1
    told = capsys.readouterr().err
    assert "model.num_heads is 2 in the checkpoint and 4 in the configuration; model.cls_prototypes is 12 in" in told
    assert (run / "config.yaml").read_bytes() == before
    assert main([*resume, "--set", "train.steps=6"]) == 0


@pytest.mark.parametrize(
    "options",
    [["--resume", "--overwrite"], ["--auto-resume", "--resume"], ["--auto-resume", "--overwrite"]],
)
def test_contradicting_options_are_wrong_usage(
    images: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", str(images), "--output", str(tmp_path / "run"), *options]) == 2
    assert f"{options[0]} and {options[1]} contradict each other" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["pretrain", str(images)]) == 2


def test_a_run_is_not_started_over_another(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", str(images), "--output", str(run), *TINY]) == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert main(["pretrain", str(images), "--output", str(run), *TINY]) == 1
    assert "already holds a run; go on with it by --resume" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_one_line_begins_a_run_and_goes_on_with_it(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    line = ["pretrain", str(images), "--output", str(run), *TINY, "--auto-resume"]
    assert main(line) == 0
    assert main([*line, "--set", "train.steps=8", "--set", "train.keep_last=1"]) == 0
    assert steps_in(run) == list(range(8))
    told = capsys.readouterr().err
    assert "WARNING train.steps is now 8, it was 5: what has been done stays, the schedules of what is left" in told
    assert "INFO train.keep_last is now 1, it was 3" in told
    history = [json.loads(text) for text in (run / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == [0, 5]
    # Another line of the same job, which says nothing of the settings.
    assert main(["pretrain", str(images), "--output", str(run), "--auto-resume"]) == 0
    assert main([*line, "--seed", "4", "--set", "train.steps=8"]) == 1
    assert "train.seed is 0 in the checkpoint and 4 in the configuration" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_told_and_done_again(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["pretrain", str(images), *TINY, "--precision", "fp32", "--set", "train.checkpoint_every_steps=2"]
    assert main([*line, "--output", str(tmp_path / "whole")]) == 0
    run = tmp_path / "run"
    assert main([*line, "--output", str(run)]) == 0
    path = run / "checkpoints" / "step-00000005.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["pretrain", str(images), "--output", str(run), "--resume"]) == 0
    assert "the damaged one is now step-00000005.pt.damaged" in capsys.readouterr().err
    assert "the damaged one is now step-00000005.pt.damaged" in (run / "log.txt").read_text()
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 4]
    assert lines[4]["loss"] == lines[5]["loss"]
    ends = [torch.load(tmp_path / name / "checkpoints" / "latest") for name in ("whole", "run")]
    torch.testing.assert_close(ends[0]["teacher"], ends[1]["teacher"], rtol=0, atol=0)


def test_other_images_are_refused_and_moved_ones_are_not(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", str(images), "--output", str(run), *TINY]) == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != "log.txt"}
    moved = images.rename(tmp_path / "moved")
    resume = ["--output", str(run), "--resume", "--set", "train.steps=7"]
    (moved / "class1" / "7.png").rename(moved / "class1" / "8.png")
    assert main(["pretrain", str(moved), *resume]) == 1
    assert "was trained on 8 images of other names than those of DATA" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before
    (moved / "class1" / "8.png").rename(moved / "class1" / "7.png")
    assert main(["pretrain", str(moved), *resume]) == 0
