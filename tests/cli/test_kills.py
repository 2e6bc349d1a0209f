"""Runs that are killed, over and over, and go on as if nothing had happened."""

import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SETTINGS = {
    "data.division": "views",  # else images as small as these are kept decoded, without loader processes
    "views.global_size": 16,
    "views.local_size": 8,
    "views.num_local": 1,
    "photometric.patch_probability": 0.5,
    "model.arch": "vit_tiny_patch16_224",
    "model.patch_size": 8,
    "model.width": 16,
    "model.depth": 2,
    "model.num_heads": 2,
    "model.drop_path": 0.2,
    "model.head_hidden": 16,
    "model.head_bottleneck": 8,
    "model.cls_prototypes": 12,
    "model.patch_prototypes": 8,
    "train.batch_size": 3,
    "train.steps": 160,
    "train.checkpoint_every_steps": 5,
    "train.keep_last": 2,
    "train.keep_every": 50,
    "train.precision": "fp32",
    "train.device": "cpu",
    "log.every_steps": 1,
}
NUM_STEPS = 160
NUM_KILLS, NUM_WHILE_SAVING, NUM_WHILE_STARTING = 20, 6, 3

# Torch takes seconds to import; a process that has done so and does nothing else forks the command line for each start.
# It answers each line, of arguments, a file for stderr and a limit for files, with the number of the process, and when
# that ends with the exit code; each says which it is, since a code taken for a number would get signals sent to others.
STARTER = """
import gc, json, os, resource, signal, sys
import torch
import patchssl.cli.pretrain, patchssl.data.sources, patchssl.derived, patchssl.initial, patchssl.pretrain, faiss
from patchssl.cli.main import main

torch.set_num_threads(1)
gc.freeze()
print("started", os.getpid(), flush=True)
for line in sys.stdin:
    arguments, told, limit = json.loads(line)
    number = os.fork()
    if number == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = main(arguments)
        os._exit(code)  # what Python clears away before its end takes it longer than all the rest
    print("started", number, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)
"""


class Starter:
    """Starts `patchssl` in processes of their own."""

    def __init__(self, told: Path) -> None:
        self.told = told
        self._process = subprocess.Popen(
            [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._answer("started") == self._process.pid

    def start(self, arguments: list[str], limit: int | None = None) -> int:
        """Start the command line, with a limit for the size of files that it writes, in bytes.

        Returns:
            The number of its process, which leads a group of its own.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([arguments, str(self.told), limit]) + "\n")
        self._process.stdin.flush()
        return self._answer("started")

    def wait(self) -> int:
        """The exit code of what was started, negative for the signal that ended it."""
        return self._answer("ended")

    def end(self) -> None:
        self._process.communicate(timeout=60)

    def _answer(self, kind: str) -> int:
        """The next answer of a kind; before it may stand the end of a process that a failed test did not wait for."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline().split():
            if line[0] == kind:
                return int(line[1])
        raise AssertionError("what starts processes has ended")


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    starter = Starter(tmp_path_factory.mktemp("told") / "stderr.txt")
    yield starter
    starter.end()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(10):
        pixels = generator.integers(256, size=(20 + number, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


class Whole:
    """A run that nobody interrupted."""

    def __init__(self, starter: Starter, images: Path, output: Path) -> None:
        begun = time.monotonic()
        starter.start(command(images, output))
        while not (output / "checkpoints" / "latest").exists():
            time.sleep(0.005)
        self.startup_s = time.monotonic() - begun
        assert starter.wait() == 0, starter.told.read_text()
        self.output = output
        self.losses = {step: lines for step, (lines,) in losses(output).items()}
        assert sorted(self.losses) == list(range(NUM_STEPS))


@pytest.fixture(scope="module")
def whole(starter: Starter, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(starter, images, tmp_path_factory.mktemp("whole") / "run")


def command(images: Path, output: Path, *more: str) -> list[str]:
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    return ["pretrain", str(images), "--output", str(output), *settings, *more]


def losses(run: Path) -> dict[int, list[str]]:
    """What stands in metrics.jsonl, for each step the losses of all times that it was done, to the last digit."""
    found: dict[int, list[str]] = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        found.setdefault(line["step"], []).append(repr([line[name] for name in ("loss", "loss_cls", "loss_patch")]))
    return found


def num_steps_done(run: Path) -> int:
    try:
        found = re.findall(rb'^{"step": (\d+), .*}\n', (run / "metrics.jsonl").read_bytes(), re.MULTILINE)
    except FileNotFoundError:
        return 0
    return max((int(step) + 1 for step in found), default=0)


def parts(run: Path) -> list[str]:
    try:
        return [name for name in os.listdir(run / "checkpoints") if name.endswith(".part")]  # noqa: PTH208 - quick
    except FileNotFoundError:
        return []


def group_is_empty(group: int, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def assert_equal_to_the_last_bit(run: Path, whole: Whole) -> None:
    found = losses(run)
    assert sorted(found) == list(range(NUM_STEPS))
    # Steps that were done again too.
    assert {step: set(values) for step, values in found.items()} == {step: {v} for step, v in whole.losses.items()}
    for name in ("step-00000100.pt", "step-00000150.pt"):
        assert (run / "checkpoints" / name).exists()
    assert not parts(run)
    done = subprocess.run("sha256sum -c *.sha256", shell=True, cwd=run / "checkpoints", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": OK") == len(list((run / "checkpoints").glob("step-*.pt")))
    import torch

    ends = [torch.load(folder / "checkpoints" / "latest") for folder in (run, whole.output)]
    for name in ("teacher", "student", "centers", "optimizer"):
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=0, atol=0)


def wait_for_step(run: Path, step: int, group: int) -> None:
    """Return when a step has been written down, or if it has been before, one that had not."""
    until = time.monotonic() + 60
    step = max(step, num_steps_done(run))
    while num_steps_done(run) <= step and time.monotonic() < until:
        os.kill(group, 0)
        time.sleep(0.01)


def wait_for_handler(process: int) -> None:
    """Return once SIGTERM does not end a process any more."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
        if caught is not None and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)


def wait_for_saving(run: Path, num: int) -> None:
    """Return while a checkpoint is being written, the so-manieth from now on."""
    known, seen, until = set(parts(run)), set[str](), time.monotonic() + 60
    while len(seen) < num and time.monotonic() < until:
        seen |= set(parts(run)) - known


def test_a_run_killed_at_any_moment_goes_on_to_the_last_bit(
    starter: Starter, images: Path, whole: Whole, tmp_path: Path
) -> None:
    run, draw = tmp_path / "run", random.Random(0)
    steps = sorted(draw.randrange(NUM_STEPS - 30) for _ in range(NUM_KILLS - NUM_WHILE_SAVING - NUM_WHILE_STARTING))
    kinds = ["saving"] * NUM_WHILE_SAVING + ["starting"] * NUM_WHILE_STARTING + ["step"] * len(steps)
    draw.shuffle(kinds)
    groups: list[int] = []
    while kinds:
        kind = kinds.pop(0)
        workers = str(len(groups) % 3)
        group = starter.start(command(images, run, "--auto-resume", "--workers", workers))
        groups.append(group)
        if kind == "starting":
            time.sleep(draw.uniform(0, whole.startup_s))
        elif kind == "step":
            wait_for_step(run, steps.pop(0), group)
            time.sleep(draw.uniform(0, 0.1))
        else:
            wait_for_saving(run, draw.randint(1, 2))
        os.kill(group, signal.SIGKILL)
        assert starter.wait() == -signal.SIGKILL, starter.told.read_text()[-2000:]
        if kind == "saving" and not any("step-" in part for part in parts(run)) and len(groups) < 2 * NUM_KILLS:
            kinds.insert(0, kind)  # too late: the file was whole already
    assert len(groups) < 2 * NUM_KILLS
    assert all(group_is_empty(group, within_s=10) for group in groups)
    starter.start(command(images, run, "--auto-resume"))
    assert starter.wait() == 0, starter.told.read_text()[-2000:]
    assert "damaged" not in starter.told.read_text()
    assert len((run / "history.jsonl").read_text().splitlines()) > NUM_KILLS - NUM_WHILE_STARTING
    assert_equal_to_the_last_bit(run, whole)


def test_a_run_that_is_asked_to_stop_again_and_again_goes_on_to_the_last_bit(
    starter: Starter, images: Path, whole: Whole, tmp_path: Path
) -> None:
    run, draw = tmp_path / "run", random.Random(1)
    for attempt in range(7):
        number, code = [(signal.SIGTERM, 0), (signal.SIGINT, 130)][attempt % 2]
        group = starter.start(command(images, run, "--auto-resume", "--workers", str(attempt % 3)))
        wait_for_handler(group)
        if attempt < 2:
            time.sleep(draw.uniform(0, whole.startup_s))  # before there is anything
        else:
            wait_for_step(run, draw.randrange(NUM_STEPS // 8) + (attempt - 2) * NUM_STEPS // 6, group)
            time.sleep(draw.uniform(0, 0.1))
        os.killpg(group, number)
        begun = time.monotonic()
        assert starter.wait() == code, starter.told.read_text()[-2000:]
        assert time.monotonic() - begun < 10
        assert group_is_empty(group, within_s=3)
    starter.start(command(images, run, "--auto-resume"))
    assert starter.wait() == 0, starter.told.read_text()[-2000:]
    assert "Traceback" not in starter.told.read_text()
    assert_equal_to_the_last_bit(run, whole)


def stop(starter: Starter, group: int) -> float:
    """Send SIGTERM; returns the seconds until the process has ended with exit code 0."""
    os.killpg(group, signal.SIGTERM)
    begun = time.monotonic()
    assert starter.wait() == 0, starter.told.read_text()[-2000:]
    assert group_is_empty(group, within_s=3)
    return time.monotonic() - begun


def stuck_at_an_image(starter: Starter, images: Path, tmp_path: Path, workers: int) -> tuple[int, Path]:
    """A run that waits for an image as for a file server that does not answer; its process, and the image."""
    folder, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, folder)
    stuck = folder / "5.png"
    stuck.unlink()
    os.mkfifo(stuck)  # who opens it waits for someone who writes
    group = starter.start(command(folder, run, "--workers", str(workers)))
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    return group, stuck


def test_loader_processes_do_not_outlive_a_killed_run_whatever_they_wait_for(
    starter: Starter, images: Path, tmp_path: Path
) -> None:
    group, _ = stuck_at_an_image(starter, images, tmp_path, 2)
    assert not group_is_empty(group, within_s=0.1)
    os.kill(group, signal.SIGKILL)
    assert starter.wait() == -signal.SIGKILL
    assert group_is_empty(group, within_s=5)


def test_a_signal_does_not_wait_for_images_that_are_to_be_kept_decoded(
    starter: Starter, images: Path, tmp_path: Path
) -> None:
    folder, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, folder)
    stuck = folder / "5.png"
    stuck.unlink()
    os.mkfifo(stuck)
    group = starter.start(command(folder, run, "--workers", "1", "--set", "data.division=resident"))
    while not (run / "checkpoints" / "latest").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    assert stop(starter, group) < 10
    assert (run / "checkpoints" / "latest").resolve().name == "step-00000000.pt"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_does_not_wait_for_images_that_do_not_come(
    starter: Starter, images: Path, tmp_path: Path, workers: int
) -> None:
    run = tmp_path / "run"
    group, stuck = stuck_at_an_image(starter, images, tmp_path, workers)
    assert stop(starter, group) < 10
    assert (run / "checkpoints" / "latest").exists()
    stuck.unlink()
    shutil.copy(images / "5.png", stuck)
    starter.start(command(stuck.parent, run, "--resume", "--set", "train.steps=20"))
    assert starter.wait() == 0
    assert len(losses(run)) == 20


def test_a_signal_while_the_data_are_opened_leaves_nothing(starter: Starter, tmp_path: Path) -> None:
    data, run = tmp_path / "cifar", tmp_path / "run"
    data.mkdir()
    (data / "data_batch_1").write_bytes(pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 0]}))
    os.mkfifo(data / "data_batch_2")
    group = starter.start(command(data, run))
    wait_for_handler(group)
    time.sleep(0.2)
    assert stop(starter, group) < 5
    assert not run.exists()
    assert "SIGTERM: stopping before the first step" in starter.told.read_text()


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "history.jsonl", "step-00000010.pt"])
def test_a_disk_that_fills_leaves_whole_files(starter: Starter, images: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    train = command(images, run, "--workers", "0", "--set", "train.steps=10")
    starter.start([*train, "--set", "train.steps=5"])
    assert starter.wait() == 0
    # No file may grow beyond the limit: writes fail as they do on a full disk. Only the named file comes near it.
    size = max(file.stat().st_size for file in run.rglob("*"))
    if name.endswith((".jsonl", ".txt")):
        lines = (run / name).read_bytes()
        (run / name).write_bytes(lines * (size * 2 // len(lines) + 1))
        limit = (run / name).stat().st_size + 30
    else:
        limit = size - 100
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    begun = len(starter.told.read_text())
    starter.start([*train, "--resume"], limit=limit)
    code, told = starter.wait(), starter.told.read_text()[begun:]
    assert "Traceback" not in told
    assert "Logging error" not in told
    assert all(file.read_bytes().endswith(b"\n") for file in run.iterdir() if file.is_file())
    checked = subprocess.run(
        ["sha256sum", "-c", *sorted(path.name for path in run.glob("checkpoints/*.sha256"))], cwd=run / "checkpoints"
    )
    assert checked.returncode == 0
    assert not [file for file in run.rglob("*") if ".part" in file.name]
    if name == "log.txt":
        assert code == 0
        assert told.count(f"cannot write {run / name}: File too large") == 1
        return
    errors = [line for line in told.splitlines() if line.startswith("Error: ")]
    assert code == 1
    assert len(errors) == 1
    assert name in errors[0]
    assert "File too large; free some space and" in errors[0]
    assert (run / name).read_bytes() == before[run / name] if (run / name).exists() else name.startswith("step-")
    if name == "metrics.jsonl":
        (run / name).write_bytes(lines)
    starter.start([*train, "--auto-resume"])
    assert starter.wait() == 0
    assert sorted(losses(run)) == list(range(10))
