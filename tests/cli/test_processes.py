import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchssl.cli.main import main
from patchssl.data.images import FileSource
from patchssl.evaluate.extracting.store import FeatureStore

TINY = "timm:vit_tiny_patch16_224@random"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, 6 training and 3 test images each."""
    generator = np.random.default_rng(0)
    for part, num in (("train", 6), ("val", 3)):
        for name in ("one", "two"):
            folder = tmp_path / "tiny" / part / name
            folder.mkdir(parents=True)
            for index in range(num):
                Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "tiny"


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = FeatureStore.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "shard_images", 4)


def command(images: Path, *more: str) -> list[str]:
    options = ["--image-size", "32", "--workers", "0", "--batch-size", "4", "--device", "cpu", "--k", "3"]
    return ["eval", "knn", str(images), "--model", TINY, *options, "--format", "json", *more]


def stop_at(place: str, do: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reading an image do something; once."""
    read = FileSource.read
    done: list[int] = []

    def stopping(source: FileSource, index: int) -> Image.Image:
        if source.ids[index] == place and not done:
            done.append(index)
            do()
        return read(source, index)

    monkeypatch.setattr(FileSource, "read", stopping)


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("do", "code"), [(interrupt, 130), (terminate, 0)])
def test_a_stopped_evaluation_keeps_its_shards_and_goes_on(
    do: Any,
    code: int,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"
    ours = command(images, "--cache", str(cache), "--results", str(tmp_path / "rows"))
    before = signal.getsignal(signal.SIGTERM)
    # The sixth of twelve training images, in the second shard.
    stop_at(os.path.join("one", "5.png"), do, monkeypatch)  # noqa: PTH118 - an id
    assert main(ours) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert f"stopped; finished features are kept in {cache}, the same command goes on there" in err
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(list(cache.rglob("*.safetensors"))) == 1
    assert not (tmp_path / "rows").exists()
    assert main(ours) == 0
    out, err = capsys.readouterr()
    assert "training images: features of 4 of 12 were in" in err
    assert json.loads(out)["details"]["num_stored"] == {"train": 4, "test": 0}


def test_without_a_cache_stopping_says_that_nothing_is_kept(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(os.path.join("one", "5.png"), terminate, monkeypatch)  # noqa: PTH118 - an id
    assert main(command(images, "--no-cache", "--no-record")) == 0
    assert "with --no-cache nothing is kept" in capsys.readouterr().err
    assert list(Path(os.environ["PATCHSSL_CACHE"]).iterdir()) == []


def test_two_processes_of_torchrun_print_and_record_one_row(
    images: Path, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(repository), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ours = command(images, "--cache", str(tmp_path / "two"), "--results", str(tmp_path / "rows"))
    done = subprocess.run(
        [*torchrun, "-m", "patchssl", *ours], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    (line,) = (tmp_path / "rows" / "knn.jsonl").read_text().splitlines()
    assert json.loads(line) == row
    assert main(command(images, "--no-cache", "--no-record")) == 0
    alone = json.loads(capsys.readouterr().out)
    for name in ("metrics", "dataset", "model", "settings", "comparability"):
        assert row[name] == alone[name]


def test_several_processes_refuse_to_go_without_a_cache(in_two_processes: Any, images: Path, tmp_path: Path) -> None:
    def run() -> None:
        with (tmp_path / f"{os.environ['RANK']}.txt").open("w") as told:
            os.dup2(told.fileno(), 2)
            sys.stderr = told
            assert main(command(images, "--no-cache", "--no-record", "--quiet")) == 1

    assert in_two_processes(run) == [0, 0]
    for rank in range(2):
        assert "2 processes share their features through a store" in (tmp_path / f"{rank}.txt").read_text()


def test_cache_and_no_cache_contradict_each_other(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(images, "--cache", "somewhere", "--no-cache")) == 2
    assert "--cache and --no-cache contradict each other" in capsys.readouterr().err


def test_no_cache_neither_reads_nor_keeps(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for more in ((), ("--no-cache",)):
        assert main(command(images, "--no-record", *more)) == 0
        rows.append(json.loads(capsys.readouterr().out))
    assert rows[1]["details"]["num_stored"] == {"train": 0, "test": 0}
    assert rows[0]["metrics"] == rows[1]["metrics"]
