"""Files of any name go through the commands, and what is said of them stays one line each."""

import csv
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SETTINGS = {
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
    "data.max_bad_fraction": 0.7,
    "train.batch_size": 8,
    "train.steps": 3,
    "log.every_steps": 1,
}
TINY = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
GOOD = ["a \"b\" 'c'\nd é.jpg", os.fsdecode(b"\xff\xfe.png"), "two  spaces\t[red] 日本.jpg"]
BAD = [" bad \"b\" 'c'\nd é.jpg", os.fsdecode(b"bad\n\xff.png")]
Told = Callable[..., tuple[int, list[str]]]
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) \S.*")


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    """Run a command line; its exit code, and what it writes to stderr, split at newlines alone.

    It runs in a forked process: what pytest keeps of log lines cannot hold every name.
    """
    # Imported once, for all that are forked.
    import faiss  # noqa: F401
    import torch

    import patchssl.cli.pretrain
    import patchssl.data.copies.dataset
    import patchssl.derived
    import patchssl.initial
    import patchssl.pretrain  # noqa: F401

    def run(*arguments: object) -> tuple[int, list[str]]:
        file = tmp_path / "stderr.txt"
        command = [str(argument) for argument in arguments]
        process = multiprocessing.get_context("fork").Process(target=_run, args=(file, command))
        process.start()
        process.join(60)
        assert process.exitcode is not None
        text = file.read_text(encoding="utf-8")
        return process.exitcode, text.rstrip("\n").split("\n") if text else []

    before = torch.get_num_threads()
    # Threads do not survive a fork.
    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(before)


def _run(told: Path, arguments: list[str]) -> None:
    from patchssl.cli.main import main

    sys.stderr = told.open("w", encoding="utf-8", errors="backslashreplace", buffering=1)  # as Python opens it
    os.dup2(sys.stderr.fileno(), 2)
    os._exit(main(arguments))  # what Python clears away before its end takes it longer than all the rest


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "all 'my'\nimages"
    generator = np.random.default_rng(0)
    for name in GOOD:
        path = folder / "a \n folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(80, 84, 3), dtype=np.uint8)).save(path)
    for name in BAD:
        (folder / name).write_bytes(b"no image")
    return folder


def shown(name: str) -> str:
    """As a line on stderr shows a name."""
    return name.replace("\n", r"\n").replace("\t", r"\t").encode(errors="backslashreplace").decode()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_pretraining_on_them(workers: str, images: Path, tmp_path: Path, told: Told) -> None:
    run = tmp_path / "a run\nof mine"
    code, lines = told("pretrain", str(images), "--output", str(run), *TINY, "--workers", workers)
    assert code == 0
    assert all(LINE.fullmatch(line) for line in lines), lines
    for name in BAD:
        (line,) = [line for line in lines if "unreadable image left out: " in line and shown(name) in line]
        assert line.endswith(f"{shown(str(images / name))}: is not an image of a known format ({line.split('(')[-1]}")
    (whole,) = [line for line in lines if "5 images of" in line]
    assert shown(str(images)) in whole
    logged = (run / "log.txt").read_text()
    assert all(LINE.fullmatch(line) for line in logged.rstrip("\n").split("\n"))
    with (run / "unreadable.tsv").open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert {path for path, _ in rows} == {str(images / name).encode(errors="backslashreplace").decode() for name in BAD}
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]
    if workers == "0":
        assert told("pretrain", str(images), "--output", str(run), "--resume", "--set", "train.steps=4")[0] == 0


def test_an_error_that_names_them_is_one_line(images: Path, tmp_path: Path, told: Told) -> None:
    strict = [*TINY, "--workers", "0", "--max-bad-fraction", "0"]
    code, lines = told("pretrain", str(images), "--output", str(tmp_path / "run"), *strict, "--quiet")
    assert code == 1
    (error,) = [line for line in lines if line.startswith("Error: ")]
    assert any(f"for instance {shown(str(images / name))}: is not an image" in error for name in BAD)
    assert all(LINE.fullmatch(line) for line in lines if line != error)
    code, (error,) = told("pretrain", str(images / "not\nhere"), "--output", str(tmp_path / "run"), *TINY)
    assert code == 1
    assert error.startswith(f"Error: {shown(str(images / 'not'))}\\nhere does not exist; ")


def test_a_table_of_them(images: Path, tmp_path: Path, told: Told) -> None:
    """A table is in UTF-8, so that names of other bytes cannot stand in it."""
    table = tmp_path / "a 'table'\n.csv"
    named = [images / "a \n folder" / GOOD[0], images / "a \n folder" / GOOD[2], images / BAD[0], images / "gone\n.jpg"]
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path"], *([str(path)] for path in named)])
    run = tmp_path / "run"
    code, lines = told("pretrain", str(table), "--output", str(run), *TINY, "--workers", "0")
    assert code == 0
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert any(line.endswith(f"left out: {shown(str(named[3]))}: No such file or directory") for line in lines)
    with (run / "unreadable.tsv").open(newline="") as file:
        assert {path for path, _ in csv.reader(file, delimiter="\t")} == {str(path) for path in named[2:]}


@pytest.mark.parametrize("workers", ["0", "1"])
def test_copies_of_them(workers: str, images: Path, tmp_path: Path, told: Told) -> None:
    out = tmp_path / "copies\nof them"
    code, lines = told("data", "copies", str(images), str(out), "--workers", workers)
    assert code == 0
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert any(f"left out 2 images, listed in left_out.csv: {shown(BAD[0])} is not an image" in line for line in lines)
    with (out / "originals.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        sources = {row["source"] for row in csv.DictReader(file)}
    assert {Path(source).name for source in sources} == set(GOOD)
