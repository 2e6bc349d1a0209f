"""A loader process dies in the middle of a run: the run says of what, keeps what was done, and can go on."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchssl.cli.main import main
from patchssl.data.images import FileSource, Stored

SETTINGS = {
    "data.division": "views",  # small images are kept decoded otherwise
    "views.global_size": 16,
    "views.local_size": 8,
    "views.num_local": 1,
    "model.arch": "vit_tiny_patch16_224",
    "model.patch_size": 8,
    "model.width": 16,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.head_hidden": 16,
    "model.head_bottleneck": 8,
    "model.cls_prototypes": 12,
    "model.patch_prototypes": 8,
    "data.max_bad_fraction": 0.2,
    "train.batch_size": 4,
    "train.steps": 12,
    "train.device": "cpu",
    "log.every_steps": 1,
}
TINY = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
NAME = "bad 'one'\n.png"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in (*(f"{number}.png" for number in range(7)), NAME):
        Image.fromarray(generator.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(folder / name)
    return folder


def steps_in(run: Path) -> list[int]:
    try:
        return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []


@pytest.fixture
def acting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[], object]], None]:
    """Let processes do something when they read NAME in the fourth epoch, after two steps have been done at least."""
    fetch, seen = FileSource.fetch, list[int]()

    def install(act: Callable[[], object]) -> None:
        def fetching(source: FileSource, index: int) -> Stored:
            if source.ids[index] == NAME and (source.root / NAME).stat().st_size:
                seen.append(index)
                if len(seen) == 4:
                    while len(steps_in(tmp_path / "run")) < 2:
                        time.sleep(0.01)
                    act()
            return fetch(source, index)

        monkeypatch.setattr(FileSource, "fetch", fetching)

    return install


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def divide() -> None:
    raise ZeroDivisionError("by nothing")


@pytest.mark.parametrize(
    ("act", "how", "advice"),
    [
        (kill(signal.SIGSEGV), "was killed by SIGSEGV", "if it happens there again, put another image, or an empty "),
        (kill(signal.SIGKILL), "was killed by SIGKILL", "so a system ends processes when memory runs out: take fewer "),
        (lambda: os._exit(3), "ended with exit code 3", "if it happens there again, put another image, or an empty "),
    ],
)
def test_a_run_saves_says_why_and_goes_on(
    act: Callable[[], object],
    how: str,
    advice: str,
    acting: Callable[[Callable[[], object]], None],
    images: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    acting(act)
    assert main(["pretrain", str(images), "--output", str(run), *TINY, "--workers", "1"]) == 1
    lines = capfd.readouterr().err.splitlines()
    (error,) = [line for line in lines if not re.match(r"\d{4}-", line)]
    shown = str(images / NAME).replace("\n", r"\n")
    num = len(steps_in(run))
    assert 2 <= num <= 7
    assert re.fullmatch(
        rf"Error: a loader process \(pid \d+\) {how} while it read {re.escape(shown)}; {advice}.*; the checkpoint "
        rf"step-{num:08d}\.pt is kept: go on with --resume",
        error,
    )
    # As the message advises.
    (images / NAME).write_bytes(b"")
    assert main(["pretrain", str(images), "--output", str(run), "--resume", "--workers", "1"]) == 0
    assert steps_in(run) == list(range(12))


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unforeseen_error_is_one_line_and_its_traceback_for_who_asks(
    workers: str,
    acting: Callable[[Callable[[], object]], None],
    images: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    acting(divide)
    train = ["pretrain", str(images), "--output", str(run), *TINY, "--workers", workers]
    assert main(train) == 1
    (error,) = [line for line in capfd.readouterr().err.splitlines() if not re.match(r"\d{4}-", line)]
    shown, num = str(images / NAME).replace("\n", r"\n"), len(steps_in(run))
    assert error == (
        f"Error: ZeroDivisionError: by nothing (while it read {shown}); the checkpoint step-{num:08d}.pt is kept: go "
        "on with --resume (run again with --debug for the traceback)"
    )


def test_with_debug_the_traceback_of_a_loader_process_is_shown(
    acting: Callable[[Callable[[], object]], None], images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    acting(divide)
    train = ["pretrain", str(images), "--output", str(tmp_path / "run"), *TINY, "--workers", "1"]
    assert main([*train, "--debug"]) == 1
    told = capfd.readouterr().err
    assert 'raise ZeroDivisionError("by nothing")' in told
    assert ", in divide" in told
    assert told.splitlines()[-1].startswith("Error: ZeroDivisionError: by nothing (while it read ")


def test_with_several_processes_the_last_checkpoint_is_named(
    acting: Callable[[Callable[[], object]], None],
    images: Path,
    tmp_path: Path,
    launch: Callable[..., Any],
) -> None:
    """They cannot save together any more: the others say that they have lost one, and nobody waits."""
    run = tmp_path / "run"
    acting(kill(signal.SIGSEGV))
    started = launch("pretrain", str(images), "--output", str(run), *TINY, "--workers", "1")
    assert started.ends() == [1, 1]
    errors = started.errors()
    (died,) = [error for error in errors if "loader process" in error]
    assert "was killed by SIGSEGV while it read " in died
    assert died.endswith("; the checkpoint step-00000000.pt is kept: go on with --resume")
    (lost,) = [error for error in errors if error != died]
    assert "lost another one" in lost
