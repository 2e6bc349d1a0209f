"""What the command line says of memory: dry runs, warnings, and training that runs out of it."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchssl import available_memory, trainer
from patchssl.available_memory import Available
from patchssl.cli.main import main
from patchssl.step_values import StepValues
from patchssl.structs import SampleKeys

SETTINGS = {
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
    "train.checkpoint_every_steps": 2,
}


def options(**changes: object) -> list[str]:
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")] + ["--workers", "0"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(generator.integers(256, size=(24, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def little_memory(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(available_memory, "host_memory", lambda: Available(num_bytes, "free memory of the machine"))


def test_a_dry_run_writes_nothing_and_says_all(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    before = sorted(tmp_path.rglob("*"))
    assert main(["pretrain", str(images), "--output", str(run), *options(), "--dry-run", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(tmp_path.rglob("*")) == before
    assert told["data"] == {"location": str(images), "num_images": 8}
    networks, training, memory = told["networks"], told["training"], told["memory"]
    assert networks["num_backbone_params"] == 6496
    assert (networks["num_cls_head_params"], networks["num_patch_head_params"]) == (788, 752)
    assert networks["num_student_params"] == networks["num_teacher_params"] == 6496 + 788 + 752
    assert networks["num_trained_params"] == networks["num_student_params"] - 12 - 8
    assert (training["num_steps"], training["epochs"], training["num_images_in_flight"]) == (5, 2.5, 4)
    assert training["learning_rate"] == pytest.approx(3e-3)
    assert memory["fits"] is True
    assert memory["on_device_bytes"] == sum(memory["parts_bytes"].values()) < memory["available_on_device_bytes"]
    # Eight images of 24 x 32 stay on the device.
    assert training["division"] == "resident"
    assert memory["parts_bytes"]["images"] >= 8 * 24 * 32 * 3
    assert memory["parts_bytes"]["loader"] == 0
    assert told["advice"] == []


def test_a_dry_run_in_other_formats(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", str(images), "--output", str(tmp_path / "run"), *options(), "--dry-run"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert re.search(r"num_student_params +8,036", table)
    assert re.search(r"train|DINO's", table)
    assert main([*command, "--format", "markdown"]) == 0
    assert "| activations | " in capsys.readouterr().out
    assert main([*command, "--format", "csv"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["name", "value", "about"]
    assert {len(row) for row in rows} == {3}


def test_networks_that_no_machine_here_holds_are_refused_with_numbers(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    little_memory(monkeypatch, 24 << 30)
    huge = ["--set", "model.arch=vit_huge_patch14_224", "--set", "views.num_local=0", "--batch-size", "62"]
    huge += ["--set", "loss.patch_weight=0", "--set", "model.cls_prototypes=4096"]
    huge += ["--precision", "bf16", "--workers", "0", "--dry-run", "--format", "json"]
    assert main(["pretrain", str(images), "--output", str(tmp_path / "run"), *huge]) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["memory"]["on_device_bytes"] > 40 << 30
    assert told["memory"]["fits"] is False
    fitting = [advice for advice in told["advice"] if advice["fits"]]
    assert any(advice["change"].startswith("train.accumulate=") for advice in fitting)
    assert all(advice["on_device_bytes"] <= 24 << 30 for advice in fitting)
    assert captured.err.count("\n") == 1
    assert re.search(r"^Error: this will not fit into memory: about \d+\.\d\d GiB on cpu .* of 24.00 GiB", captured.err)
    assert fitting[0]["change"] in captured.err
    assert not (tmp_path / "run").exists()


def test_training_says_what_it_takes_and_warns(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", str(images), "--output", str(run), *options(train__steps=1)]) == 0
    assert re.search(r"INFO memory: about \d\.\d\d GiB on cpu \(process", (run / "log.txt").read_text())
    assert "may not fit" not in capsys.readouterr().err
    little_memory(monkeypatch, 1 << 20)
    assert main(["pretrain", str(images), "--output", str(run), "--overwrite", *options(train__steps=1)]) == 0
    warning = next(line for line in (run / "log.txt").read_text().splitlines() if "WARNING" in line)
    assert "this may not fit into memory: about" in warning
    assert "of 0.00 GiB (free memory of the machine)" in warning


def test_memory_of_a_gpu_that_runs_out_is_explained_and_the_checkpoint_kept(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, run = trainer.Trainer.step, tmp_path / "run"
    done = 0

    def runs_out(self: trainer.Trainer, decoded: list[object], keys: SampleKeys, values: StepValues) -> object:
        nonlocal done
        done += 1
        if done > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 79 GiB.")
        return step(self, decoded, keys, values)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.Trainer, "step", runs_out)
    assert main(["pretrain", str(images), "--output", str(run), *options()]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "Error: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB.): about"
    )
    assert "the checkpoint step-00000002.pt is kept: go on with --resume" in error
    assert (run / "checkpoints" / "latest").resolve().name == "step-00000002.pt"
    monkeypatch.setattr(trainer.Trainer, "step", step)
    assert main(["pretrain", str(images), "--output", str(run), "--resume"]) == 0


def test_other_errors_are_not_taken_for_it(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> object:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(trainer.Trainer, "step", fails)
    assert main(["pretrain", str(images), "--output", str(tmp_path / "run"), *options()]) == 1
    assert "Error: RuntimeError: shapes do not fit" in capsys.readouterr().err


LARGE = {
    "views__global_size": 128,
    "views__num_local": 0,
    "model__width": 96,
    "model__depth": 3,
    "model__head_hidden": 256,
    "train__batch_size": 24,
    "train__steps": 3,
    "train__precision": "fp32",
}
LIMITED = """
import resource, sys
import torch, timm
import patchssl.pretrain, patchssl.data.sources
from patchssl.cli.main import main
torch.set_num_threads(1)
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
# Threads of the backward pass take address space, a heap each.
resource.setrlimit(resource.RLIMIT_AS, ((size << 10) + (1200 << 20),) * 2)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of address space is set as Linux does")
def test_address_space_that_runs_out_is_explained(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, "pretrain", str(images), "--output", str(tmp_path / "run")]
    batch = options(**{**LARGE, "train__batch_size": 166})
    done = subprocess.run(
        [*command, *batch], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert any("WARNING this may not fit into memory" in line and "limit of address space" in line for line in lines)
    assert lines[-1].startswith("Error: out of memory (")
    assert re.search(r"about \d\.\d\d GiB on cpu \(activations .*; train.accumulate=\d+ takes \d\.\d\d GiB", lines[-1])
    assert lines[-1].endswith("; the checkpoint step-00000000.pt is kept: go on with --resume")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the peak of a process is asked of the system")
def test_a_process_takes_about_what_is_estimated(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "patchssl", "pretrain", str(images), "--output", str(tmp_path / "run")]
    command += options(**LARGE)
    planned = subprocess.run([*command, "--dry-run", "--format", "json"], capture_output=True, check=True)
    with subprocess.Popen([*command, "--quiet"]) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    parts = json.loads(planned.stdout)["memory"]["parts_bytes"]
    estimated, measured = sum(parts.values()), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert estimated == pytest.approx(measured, rel=0.25)
    # The process alone would not do: most of the rest is right as well.
    assert measured > parts["process"] * 1.2
    assert estimated - parts["process"] == pytest.approx(measured - parts["process"], rel=0.35)
