"""`patchssl pretrain --cache-images` as a user meets it."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from patchssl.cli.main import main
from patchssl.data.cache import ShrunkImages, contents
from patchssl.data.images import FileSource, Stored
from patchssl.data.sources import open_unlabelled

SETTINGS = {
    "data.division": "views",
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
    "train.steps": 6,
    "train.learning_rate": 0.001,
    "train.precision": "fp32",
    "log.every_steps": 1,
}
TINY = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
TINY += ["--workers", "0", "--device", "cpu"]
SIDE = 26  # 16 / sqrt(0.4) = 25.3


def draw(folder: Path, shape: tuple[int, int], num: int = 8) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(num):
        pixels = generator.integers(256, size=(*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Images below the limit."""
    return draw(tmp_path / "small", (20, 24))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Images above it."""
    return draw(tmp_path / "large", (60, 50))


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def errors(told: str) -> list[str]:
    return [line for line in told.splitlines() if line.startswith("Error: ")]


def shards(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in cache.glob("*/shard-*")}


def test_losses_are_equal_to_the_last_bit_where_nothing_is_shrunk(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, first, second = (tmp_path / name for name in ("plain", "first", "second"))
    cache = tmp_path / "cache of 'images'"
    assert main(["pretrain", str(small), "--output", str(plain), *TINY]) == 0
    line = ["pretrain", str(small), *TINY, "--cache-images", str(cache)]
    assert main([*line, "--output", str(first)]) == 0
    assert "making the cache of images " in capsys.readouterr().err
    before = shards(cache)
    assert main([*line, "--output", str(second)]) == 0
    told = capsys.readouterr().err
    assert "making the cache of images " not in told
    assert "images into the cache" not in told
    assert shards(cache) == before
    assert losses(first) == losses(second) == losses(plain)
    data = yaml.safe_load((first / "config.yaml").read_text())["data"]
    assert (data["cache_images"], data["cache_side"]) == (str(cache), SIDE)
    log = (first / "log.txt").read_text()
    assert "data.cache_side = 26: views.global_size 16 px / sqrt(0.4), the least of views.global_scale" in log
    assert f"images come from the cache {cache}/" in log
    assert yaml.safe_load((plain / "config.yaml").read_text())["data"]["cache_side"] is None


def test_training_on_a_cache_is_training_on_shrunk_images(large: Path, tmp_path: Path) -> None:
    shrunk, stored = ShrunkImages(open_unlabelled(large), SIDE), tmp_path / "stored"
    stored.mkdir()
    for index, name in enumerate(shrunk.ids):
        shrunk.read(index).save(stored / name)
    runs = {name: tmp_path / name for name in ("plain", "cached", "by hand")}
    assert main(["pretrain", str(large), "--output", str(runs["plain"]), *TINY]) == 0
    assert main(["pretrain", str(stored), "--output", str(runs["by hand"]), *TINY]) == 0
    line = ["pretrain", str(large), "--output", str(runs["cached"]), *TINY, "--cache-images", str(tmp_path / "cache")]
    assert main(line) == 0
    assert losses(runs["cached"]) == losses(runs["by hand"])
    assert losses(runs["cached"]) != losses(runs["plain"])


def test_a_run_goes_on_with_its_cache_wherever_that_lies_and_from_any_folder(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    line = ["pretrain", str(large), *TINY, "--cache-images", "cache"]
    assert main([*line, "--output", str(whole), "--set", "views.global_scale=[0.5, 1.0]"]) == 0
    assert main([*line, "--output", str(run), "--set", "views.global_scale=[0.5, 1.0]", "--set", "train.steps=4"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume = ["pretrain", str(large), "--output", str(run), "--resume", "--set", "train.steps=5"]
    assert main(resume) == 0
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "cache").rename(tmp_path / "moved")
    before = shards(tmp_path / "moved")
    moved = ["--cache-images", str(tmp_path / "moved"), "--set", "train.steps=6"]
    assert main([*resume, *moved]) == 0
    assert shards(tmp_path / "moved") == before
    assert not (tmp_path / "cache").exists()
    # The schedules of the steps in between followed other lengths.
    assert losses(run)[0] == losses(whole)[0]
    assert len(losses(run)) == 6
    # Settings other than the run's own leave the side open, which is then the run's, not one derived anew.
    assert (
        main(
            [
                *line,
                "--output",
                str(run),
                "--resume",
                "--cache-images",
                moved[1],
                "--set",
                "views.global_scale=[0.5, 1.0]",
                "--set",
                "train.steps=7",
            ]
        )
        == 0
    )
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["cache_side"] == 23


@pytest.mark.parametrize(
    ("begun", "then", "words"),
    [
        (
            [],
            ["CACHE"],
            "data.cache_side is null in the checkpoint and 26 in the configuration (images of the run do not",
        ),
        (
            ["CACHE"],
            ["--set", "data.cache_images=null"],
            "data.cache_side is 26 in the checkpoint and null in the configuration (images of the run come from d",
        ),
        (["CACHE"], ["--set", "data.cache_side=30"], "data.cache_side is 26 in the checkpoint and 30 in the config"),
    ],
)
def test_a_run_does_not_change_its_pixels(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: list[str], then: list[str], words: str
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    places = {"CACHE": ["--cache-images", str(cache)]}
    options = [[part for word in given for part in places.get(word, [word])] for given in (begun, then)]
    assert main(["pretrain", str(small), "--output", str(run), *TINY, *options[0]]) == 0
    before = shards(cache)
    assert main(["pretrain", str(small), "--output", str(run), "--resume", *options[1]]) == 1
    (line,) = errors(capsys.readouterr().err)
    assert words in line
    assert shards(cache) == before
    assert main(["pretrain", str(small), "--output", str(run), "--resume", "--set", "train.steps=7"]) == 0


def test_a_plan_makes_nothing_and_says_what_would_be_kept(
    large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    line = ["pretrain", str(large), "--output", str(tmp_path / "run"), *TINY, "--cache-images", str(cache)]
    assert main([*line, "--dry-run", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["cache_images"].startswith(f"{cache}/")
    assert data["cache_side"] == SIDE
    assert (data["cache_missing_images"], data["cache_missing_bytes"]) == (8, 8 * 26 * 31 * 3)  # 31.2
    assert not cache.exists()
    assert main([*line, "--dry-run"]) == 0
    assert "cache_side" in capsys.readouterr().out
    assert main(line) == 0
    capsys.readouterr()
    assert main([*line, "--dry-run", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert (data["cache_missing_images"], data["cache_missing_bytes"]) == (0, 0)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("run", "lies in the run folder"),
        ("run/cache", "lies in the run folder"),
        ("small", "is no cache of images, it holds 0.png, 1.png, 2.png, 3.png …"),
        ("other-run", "is no cache of images, it holds checkpoints, config.yaml, environment.json, history.jsonl …"),
        ("file", "is a file; give --cache-images a new or empty folder"),
    ],
)
def test_places_that_are_refused_before_anything_is_made(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, words: str
) -> None:
    (tmp_path / "file").touch()
    if place == "other-run":
        assert main(["pretrain", str(small), "--output", str(tmp_path / place), *TINY]) == 0
    before = set(tmp_path.rglob("*"))
    line = ["pretrain", str(small), "--output", str(tmp_path / "run"), *TINY, "--cache-images", str(tmp_path / place)]
    capsys.readouterr()
    assert main(line) == 1
    (told,) = errors(capsys.readouterr().err)
    assert words in told
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_size_without_a_cache_is_refused(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", str(small), "--output", str(run), *TINY, "--set", "data.cache_side=30", *more]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert "data.cache_side is 30 px, and data.cache_images names no folder" in line
    assert "give --cache-images DIR, or leave data.cache_side out" in line
    assert not run.exists()


def test_unreadable_images_count_as_without_a_cache(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small / "3.png").write_bytes(b"")
    plain, run = tmp_path / "plain", tmp_path / "run"
    some = ["--max-bad-fraction", "0.2"]
    line = ["pretrain", str(small), *TINY]
    cached = ["--cache-images", str(tmp_path / "cache")]
    assert main([*line, "--output", str(plain), *some]) == 0
    assert main([*line, "--output", str(run), *some, *cached]) == 0
    assert "; 1 cannot be read)" in capsys.readouterr().err
    assert losses(run) == losses(plain)
    assert (run / "unreadable.tsv").read_text() == (plain / "unreadable.tsv").read_text()
    told = []
    for number, options in enumerate(([], cached)):
        assert main([*line, "--output", str(tmp_path / f"none-{number}"), "--max-bad-fraction", "0", *options]) == 1
        told.append(errors(capsys.readouterr().err))
    assert told[0] == told[1]
    assert "1 of 8 images are unreadable, more than the allowed 0.0% (--max-bad-fraction)" in told[0][0]


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Files take a while from here on, in processes that are forked, too; shards are small."""
    fetch = FileSource.fetch

    def late(self: FileSource, index: int) -> Stored:
        time.sleep(seconds)
        return fetch(self, index)

    monkeypatch.setattr(FileSource, "fetch", late)
    monkeypatch.setattr(contents, "_LEAST_SHARD_IMAGES", 2)
    monkeypatch.setattr(contents, "_NUM_SAMPLED", 1)


ALONE: list[dict[str, str]] = [{"RANK": "0", "WORLD_SIZE": "1"}]


@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGTERM, 0, "2"), (signal.SIGINT, 130, "0")])
def test_a_signal_ends_the_making_and_it_goes_on_next_time(
    small: Path,
    tmp_path: Path,
    launch: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
    workers: str,
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    line = ["pretrain", str(small), "--output", str(run), *TINY, "--cache-images", str(cache), "--workers", workers]
    with monkeypatch.context() as patch:
        slow(patch, 0.1)
        started = launch(*line, environments=ALONE)
        until = time.monotonic() + 60
        while not list(cache.glob("*/shard-*.json")):
            assert time.monotonic() < until, started.told(0)
            time.sleep(0.01)
        started.signal(number)
        begin = time.monotonic()
        assert started.ends() == [code]
        assert time.monotonic() - begin < 10
    told = started.told(0)
    assert "stopping before the first step" in told
    assert "Traceback" not in told
    assert not run.exists()
    assert not [path for path in cache.rglob("*") if path.suffix in (".part", ".lock")]
    before = shards(cache)
    assert 0 < len([name for name in before if name.endswith(".json")]) < 4
    assert main(line) == 0
    assert before.items() <= shards(cache).items()
    assert len(shards(cache)) == 3 * 4
    assert len(losses(run)) == 6


def test_two_processes_of_torchrun_make_one_cache(
    large: Path, tmp_path: Path, launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, cache = tmp_path / "one", tmp_path / "two", tmp_path / "cache"
    line = ["pretrain", str(large), *TINY, "--cache-images", str(cache)]
    with monkeypatch.context() as patch:
        slow(patch, 0.02)
        started = launch(*line, "--output", str(two))
        assert started.ends() == [0, 0], started.errors()
    assert started.told(1) == ""
    assert started.told(0).count("making the cache of images") == 1
    before = shards(cache)
    assert len(before) == 3 * 4
    assert main([*line, "--output", str(one)]) == 0
    assert shards(cache) == before
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


def test_odd_bytes_in_the_name_are_refused_in_one_line(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9")
    code = main(["pretrain", str(small), "--output", str(tmp_path / "run"), *TINY, "--cache-images", str(place)])
    assert code == 1
    (told,) = errors(capsys.readouterr().err)
    assert "data.cache_images" in told
    assert not (tmp_path / "run").exists()
