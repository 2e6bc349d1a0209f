"""Runs that are killed, over and over, and go on as if nothing had happened."""

import json
import os
import random
import re
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
# It answers each line, a list of arguments and a file for stderr, with the number of the process, and its end with the
# exit status.
STARTER = """
import json, os, sys
import torch
import patchssl.cli.pretrain, patchssl.data.sources, patchssl.derived, patchssl.initial, patchssl.pretrain, faiss
from patchssl.cli.main import main

torch.set_num_threads(1)
print(os.getpid(), flush=True)
for line in sys.stdin:
    arguments, told = json.loads(line)
    number = os.fork()
    if number == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        code = main(arguments)
        sys.stderr.flush()
        sys.exit(code)
    print(number, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)
"""


class Starter:
    """Starts `patchssl` in processes of their own."""

    def __init__(self, told: Path) -> None:
        self.told = told
        self._process = subprocess.Popen(
            [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._answer() == self._process.pid

    def start(self, arguments: list[str]) -> int:
        """Start the command line; returns the number of its process, which leads a group of its own."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([arguments, str(self.told)]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """The exit code of what was started, negative for the signal that ended it."""
        return self._answer()

    def end(self) -> None:
        self._process.communicate(timeout=60)

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


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
        if attempt < 2:
            time.sleep(draw.uniform(0.05, whole.startup_s))  # before there is anything
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
