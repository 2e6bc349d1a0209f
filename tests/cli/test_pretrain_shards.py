"""`patchssl pretrain` on tar and parquet shards as a user meets it."""

import io
import json
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchssl.cli.main import main

SETTINGS = (
    "data.division=views "
    "views.global_size=16 views.local_size=8 views.num_local=2 model.arch=vit_tiny_patch16_224 model.patch_size=8 "
    "model.width=16 model.depth=1 model.num_heads=2 model.head_hidden=16 model.head_bottleneck=8 "
    "model.cls_prototypes=12 model.patch_prototypes=8 train.batch_size=4 train.precision=fp32 train.device=cpu "
    "train.warmup_fraction=0 train.learning_rate=0.01 train.final_learning_rate=0.01 train.ema_momentum=0.9 "
    "train.final_ema_momentum=0.9 train.final_weight_decay=0.04 log.every_steps=1 data.shuffle_buffer=6"
)
TINY = [part for setting in SETTINGS.split() for part in ("--set", setting)]


def pictures(num: int) -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    for _ in range(num):
        file = io.BytesIO()
        Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(file, "PNG")
        found.append(file.getvalue())
    return found


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three tar files of five pictures."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, content in enumerate(pictures(15)):
        with tarfile.open(folder / f"s-{number // 5}.tar", "a") as archive:
            about = tarfile.TarInfo(f"{number}.png")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return folder


def run(data: object, output: Path, *options: str, steps: int = 6, workers: int = 0) -> int:
    given = ["--output", str(output), "--workers", str(workers), "--set", f"train.steps={steps}"]
    return main(["pretrain", str(data), *given, *TINY, *options])


def losses(output: Path) -> dict[int, float]:
    """Of each step; the last line of a step counts."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def test_a_run_on_shards_and_its_resuming(shards: Path, tmp_path: Path) -> None:
    """However it is named, read and broken off."""
    assert run(shards, tmp_path / "straight", steps=9) == 0
    expected = losses(tmp_path / "straight")
    assert len(expected) == 9
    assert run(f"{shards}/s-{{0..2}}.tar", tmp_path / "pattern", steps=9, workers=1) == 0
    assert losses(tmp_path / "pattern") == expected
    assert run(f"file://{shards}/*.tar", tmp_path / "resumed", steps=4) == 0
    assert run(shards, tmp_path / "resumed", "--resume", steps=9, workers=1) == 0
    assert losses(tmp_path / "resumed") == expected


def test_settings_of_the_order_cannot_change_while_a_run_lasts(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shards, tmp_path / "run", steps=2) == 0
    assert run(shards, tmp_path / "other", "--set", "data.shuffle_buffer=1", steps=2) == 0
    assert run(shards, tmp_path / "run", "--resume", "--set", "data.shuffle_buffer=1", steps=3) == 1
    assert "data.shuffle_buffer is 6 in the checkpoint and 1 in the configuration" in capsys.readouterr().err
    (shards / "s-2.tar").unlink()
    assert run(shards, tmp_path / "run", "--resume", steps=3) == 1
    assert "was trained on 15 images, DATA holds 10" in capsys.readouterr().err


def test_a_run_on_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "photos.parquet"
    content = pictures(10)
    pyarrow.parquet.write_table(pyarrow.table({"scan": content, "thumb": content}), path, row_group_size=3)
    assert run(path, tmp_path / "run") == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith(f"Error: {path}: scan, thumb may hold images; columns: scan (binary), thumb (binary). ")
    assert told[-1].endswith("say which column it is with --set data.image_column=NAME")
    assert not (tmp_path / "run").exists()
    assert run(path, tmp_path / "run", "--set", "data.image_column=scan") == 0
    assert len(losses(tmp_path / "run")) == 6
    assert run(path, tmp_path / "run", "--resume", "--set", "data.image_column=thumb") == 1
    assert "data.image_column is scan in the checkpoint and thumb" in capsys.readouterr().err


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert run(tmp_path, tmp_path / "run") == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("pip install 'patchssl[shards]'")


@pytest.mark.parametrize(("workers", "is_moved"), [(0, False), (1, True)])
def test_a_shard_that_vanishes_ends_the_run_with_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int, is_moved: bool
) -> None:
    """Whether removed or moved on the same disk; and with the shard put back it goes on."""
    output, content = tmp_path / "run", (shards / "s-1.tar").read_bytes()

    def remove() -> None:
        until = time.monotonic() + 60
        while not (output / "metrics.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.01)
        (shards / "s-1.tar").rename(tmp_path / "moved") if is_moved else (shards / "s-1.tar").unlink()

    thread = threading.Thread(target=remove)
    thread.start()
    assert run(shards, output, "--set", "train.checkpoint_every_steps=1", steps=5000, workers=workers) == 1
    thread.join()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("Error", "Traceback"))]
    assert errors == [
        f"Error: {shards / 's-1.tar'} is no longer there; put it back as it was, then go on (pretrain: with --resume)"
    ]
    assert not (output / "unreadable.tsv").exists()
    (shards / "s-1.tar").write_bytes(content)
    done = len(losses(output))
    assert run(shards, output, "--resume", steps=done + 2, workers=workers) == 0
    assert len(losses(output)) == done + 2


def test_what_is_cut_off_is_listed(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(shards / "s-1.tar") as archive:
        cut = archive.getmember("8.png").offset_data + 30
    (shards / "s-1.tar").write_bytes((shards / "s-1.tar").read_bytes()[:cut])
    assert run(shards, tmp_path / "run", "--max-bad-fraction", "0.1") == 0
    assert f"s-1.tar is cut off: it ends at byte {cut:,}" in capsys.readouterr().err
    (line,) = (tmp_path / "run" / "unreadable.tsv").read_text().splitlines()
    assert line.split("\t")[0] == f"{shards}/s-1.tar: 8.png"
    assert run(shards, tmp_path / "strict", "--max-bad-fraction", "0") == 1
    assert "1 of 14 images are unreadable, more than the allowed 0.0%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("SHARDS/s-{0..3}.tar", "1 of the 4 shards cannot be found"),
        ("SHARDS/t-*.tar", "names no .tar or .parquet file that is there"),
        ("nonsense://x.tar", "Protocol not known: nonsense"),
        ("SHARDS/s-9.tar", "does not exist; give a folder of images"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, words: str
) -> None:
    assert run(data.replace("SHARDS", str(shards)), tmp_path / "run") == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("Error: ")
    assert words in told[0]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_on_shards(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shards, tmp_path / "run", "--dry-run", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)
    assert not (tmp_path / "run").exists()
