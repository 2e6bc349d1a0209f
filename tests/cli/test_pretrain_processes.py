"""`patchssl pretrain` in several processes: how they start, save, stop and fail together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
    "model.drop_path": 0,
    "model.head_hidden": 16,
    "model.head_bottleneck": 8,
    "model.cls_prototypes": 12,
    "model.patch_prototypes": 8,
    "train.batch_size": 4,
    "train.learning_rate": 0.001,
    "train.steps": 6,
    "train.precision": "fp32",
    "log.every_steps": 1,
}
TINY = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
TINY += ["--workers", "0", "--device", "cpu"]
FOREVER = ["--set", "train.steps=1000000", "--set", "train.checkpoint_every_steps=5"]

# A few seconds, and many more on a busy machine; without an end it would be half an hour.
AT_ONCE_S = 30


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        pixels = generator.integers(256, size=(20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def losses(run: Path) -> list[float]:
    """The last line of each step, as it is written."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in {line["step"]: line for line in lines}.values()]


def newest(run: Path) -> str:
    return (run / "checkpoints" / "latest").resolve().name


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if not path.is_dir()}


def test_two_processes_of_torchrun_write_one_run(images: Path, tmp_path: Path, repository: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(repository), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ours = ["pretrain", str(images), *TINY]
    done = subprocess.run(
        [*torchrun, "-m", "patchssl", *ours, "--output", str(tmp_path / "two"), "--set", "train.strategy=fsdp"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert main([*ours, "--output", str(tmp_path / "one")]) == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert done.stderr.count("6 steps of 4; 2 processes (fsdp) on cpu in fp32") == 1
    assert done.stderr.count("saved ") == 2
    assert (tmp_path / "two" / "log.txt").read_text().count("saved ") == 2


def test_tasks_of_srun_find_each_other(images: Path, tmp_path: Path, launch: Callable[..., Any]) -> None:
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }
    environments = [{**step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    run = tmp_path / "run"
    started = launch("pretrain", str(images), "--output", str(run), *TINY, environments=environments)
    assert started.ends() == [0, 0], started.errors()
    assert "2 processes (ddp) on cpu" in started.told(0)
    assert started.told(1) == ""
    assert len(losses(run)) == 6


def test_after_kill_9_a_run_goes_on_as_if_nothing_had_happened(
    images: Path, tmp_path: Path, launch: Callable[..., Any]
) -> None:
    ours = ["pretrain", str(images), *TINY, "--set", "train.steps=24", "--set", "train.checkpoint_every_steps=5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert launch(*ours, "--output", str(whole)).ends() == [0, 0]
    started = launch(*ours, "--output", str(killed))
    started.wait_for(killed / "checkpoints" / "latest")
    started.signal(signal.SIGKILL)
    assert started.ends() == [-signal.SIGKILL, -signal.SIGKILL]
    assert newest(killed) != "step-00000024.pt"
    assert launch(*ours, "--output", str(killed), "--resume").ends() == [0, 0]
    assert losses(killed) == losses(whole)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_says_so_and_ends(
    images: Path, tmp_path: Path, launch: Callable[..., Any], victim: int, strategy: str
) -> None:
    run = tmp_path / "run"
    ours = ["pretrain", str(images), "--output", str(run), *TINY]
    started = launch(*ours, *FOREVER, "--set", f"train.strategy={strategy}")
    started.wait_for(run / "checkpoints" / "latest")
    started.signal(signal.SIGKILL, victim)
    codes = started.ends(AT_ONCE_S)
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 1)
    (line,) = started.errors()
    assert f"process {1 - victim} of 2 lost another one" in line
    assert "; the checkpoint step-0" in line
    assert "go on with --resume" in line
    assert "Traceback" not in started.told(1 - victim)
    assert not [name for name in files(run) if ".part" in name]
    last = int(newest(run)[5:13])
    assert main([*ours, "--resume", "--set", f"train.steps={last + 1}", "--set", "train.strategy=auto"]) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_for_all_saves_once(
    images: Path, tmp_path: Path, launch: Callable[..., Any], number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    started = launch("pretrain", str(images), "--output", str(run), *TINY, *FOREVER, "--workers", "1")
    started.wait_for(run / "metrics.jsonl")
    started.signal(number, 0)
    time.sleep(0.05)  # one of them may learn of it a step or more later
    started.signal(number, 1)
    assert started.ends(AT_ONCE_S) == [code, code]
    assert started.errors() == []
    assert newest(run) == f"step-{len(losses(run)):08d}.pt"
    assert started.told(0).count("saving after this step, then stopping") == 1
    assert started.told(1) == ""


def test_unreadable_images_of_all_processes_count_and_are_listed(
    images: Path, tmp_path: Path, launch: Callable[..., Any]
) -> None:
    # Of an epoch's two batches of 4 each process takes 2 images: with 4 bad ones both meet some.
    bad = sorted(images.iterdir())[:4]
    for path in bad:
        path.write_bytes(b"no image")
    ours = ["pretrain", str(images), *TINY]
    most = launch(*ours, "--output", str(tmp_path / "most"), "--max-bad-fraction", "0.5")
    assert most.ends() == [0, 0], most.errors()
    listed = (tmp_path / "most" / "unreadable.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == [str(path) for path in bad]
    assert [most.told(rank).count("unreadable image left out") for rank in range(2)] == [4, 0]
    few = launch(*ours, "--output", str(tmp_path / "few"), "--max-bad-fraction", "0.3")
    assert few.ends(AT_ONCE_S) == [1, 1]
    (line,) = few.errors()
    assert "of 8 images are unreadable, more than the allowed 30.0%" in line


def test_a_disk_that_fills_up_in_the_main_process_ends_all(
    images: Path, tmp_path: Path, launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def full(*arguments: Any, **options: Any) -> None:
        from patchssl.errors import CheckpointError

        raise CheckpointError("cannot save: no space left on device")

    monkeypatch.setattr("patchssl.resuming.save_checkpoint", full)
    started = launch("pretrain", str(images), "--output", str(run), *TINY)
    assert started.ends(AT_ONCE_S) == [1, 1]
    assert started.errors() == ["Error: cannot save: no space left on device"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--batch-size", "6", "--set", "train.accumulate=2"],
            "train.batch_size is 6 and cannot be shared out evenly: 2 processes times train.accumulate 2 need a "
            "multiple of 4; take --batch-size 4 or 8",
        ),
        (["--batch-size", "1"], "2 processes times train.accumulate 1 need a multiple of 2; take --batch-size 2"),
        (["--set", "model.num_heads=5"], "cannot be built"),
        (["--set", "train.epohcs=1"], "unknown key train.epohcs"),
        (["--resume"], "holds no checkpoint to resume from"),
    ],
)
def test_what_cannot_go_is_said_once_before_anything_is_written(
    images: Path, tmp_path: Path, launch: Callable[..., Any], options: list[str], words: str
) -> None:
    started = launch("pretrain", str(images), "--output", str(tmp_path / "run"), *TINY, *options)
    assert started.ends(AT_ONCE_S) == [1, 1]
    (line,) = started.errors()
    assert words in line
    assert not (tmp_path / "run").exists()


def test_fsdp_alone_is_refused_with_advice(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = ["pretrain", str(images), "--output", str(tmp_path / "run"), *TINY, "--set", "train.strategy=fsdp"]
    assert main(ours) == 1
    assert "start several, for instance by torchrun --nproc-per-node 2 -m patchssl pretrain" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("place", "words"),
    [("data", "process 0 finds 8 images, process 1 7"), ("seed", "process 1 has another configuration or device")],
)
def test_processes_that_see_other_images_or_settings_refuse(
    images: Path, tmp_path: Path, launch: Callable[..., Any], place: str, words: str
) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    (fewer / "0.png").unlink()
    seen = [images, fewer if place == "data" else images]
    seeds = ["0", "1" if place == "seed" else "0"]
    started: list[Any] = []
    for rank in range(2):
        options = ["--output", str(tmp_path / "run"), *TINY, "--seed", seeds[rank]]
        # The second meets the first where that one is.
        port = {} if rank == 0 else {"MASTER_PORT": started[0].environments[0]["MASTER_PORT"]}
        started.append(launch("pretrain", str(seen[rank]), *options, only=rank, **port))
    assert [each.ends(AT_ONCE_S) for each in started] == [[1], [1]]
    (line,) = [error for each in started for error in each.errors()]
    assert words in line
    assert not (tmp_path / "run").exists()
