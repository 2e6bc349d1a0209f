"""Fixtures that many tests share."""

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from patchssl.evaluate.results import Metric, Row, canonical_hash

REPOSITORY = Path(__file__).parents[1]
_FILES = ("pyproject.toml", "README.md", "LICENSE")
_FOLDERS = ("patchssl", "evaluate", "configs", "results")
_BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep features of tests away from the user's, and from those of other tests."""
    monkeypatch.setenv("PATCHSSL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def in_two_processes() -> Iterator[Callable[[Callable[[], None]], list[int]]]:
    """Run a function in two processes that find in their environment what torchrun would say; their exit codes."""
    import torch

    before = torch.get_num_threads()
    # Threads do not survive a fork.
    torch.set_num_threads(1)
    yield _in_two_processes
    torch.set_num_threads(before)


def _in_two_processes(run: Callable[[], None]) -> list[int]:
    from patchssl.ranks import process_group

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(number: int) -> None:
        os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with process_group():
            run()

    # Forked, since importing torch again would take most of the time.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=start, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
            pytest.fail("a process waits for the other")
    return [process.exitcode or 0 for process in processes]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, links kept, without the network."""
    source = tmp_path_factory.mktemp("source")
    built = tmp_path_factory.mktemp("wheel")
    for name in _FILES:
        shutil.copy(REPOSITORY / name, source)
    for name in _FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignored)
    done = subprocess.run([sys.executable, "-c", _BUILD, str(built)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, as an installation lays them out."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def installed_environment(unpacked: Path) -> dict[str, str]:
    """The environment of a process that imports patchssl from the unpacked wheel."""
    return {**os.environ, "PYTHONPATH": str(unpacked)}


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Row]:
    """Make a k-NN row of one metric or several; `settings` decide its comparability."""

    def make(
        spec: str = "runs/a",
        values: float | Mapping[str, float] = 0.5,
        *,
        width: float = 0.1,
        num: int = 100,
        task: str = "knn",
        protocol: str = "dino",
        dataset: Mapping[str, Any] | None = None,
        family: str = "patchssl",
        weights: str | None = None,
        settings: Mapping[str, Any] | None = None,
        uncompared: Mapping[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
        headline: str | None = None,
        seed: int = 0,
        created: str = "2026-01-01T00:00:00+00:00",
    ) -> Row:
        named = dict(values) if isinstance(values, Mapping) else {"top1@k20": values}
        compared = {"image_px": 224, **(settings or {})}
        data = {"name": "tiny", "path_name": "data/tiny", "fingerprint": "f", "splits": {"train": 9, "test": num}}
        data |= dict(dataset or {})
        return Row(
            task=task,
            protocol=protocol,
            dataset=data,
            model={
                "spec": spec,
                "family": family,
                "num_params": 5_500_000,
                "weights_sha256": weights or canonical_hash(spec),
            },
            settings={**compared, "precision": "fp32", "k": [20], **(uncompared or {})},
            metrics={
                name: Metric(value=value, ci95_low=value - width / 2, ci95_high=value + width / 2, num=num)
                for name, value in named.items()
            },
            headline=headline or next(iter(named)),
            seconds={"features": 1.0, "evaluate": 2.0},
            environment={"python": "3"},
            seed=seed,
            created=created,
            comparability=canonical_hash([task, protocol, data["fingerprint"], data["splits"], compared]),
            details=dict(details or {}),
        )

    return make
