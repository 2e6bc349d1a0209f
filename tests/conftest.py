"""Fixtures that many tests share."""

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from patchssl.evaluate.results import Metric, Row, canonical_hash

REPOSITORY = Path(__file__).parents[1]
_FILES = ("pyproject.toml", "README.md", "LICENSE")
_FOLDERS = ("patchssl", "evaluate", "configs", "results")
_BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of as many processes as there are cores, before any test imports torch."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write out bytes of file names that are no text in what a test has said; between processes goes only text."""
    report = yield
    report.sections = [(name, _as_text(said)) for name, said in report.sections]
    if report.failed and _as_text(told := str(report.longrepr)) != told:
        report.longrepr = _as_text(told)
    return report


def _as_text(said: str) -> str:
    return said.encode(errors="backslashreplace").decode()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep features of tests away from the user's, and from those of other tests."""
    monkeypatch.setenv("PATCHSSL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def in_processes() -> Iterator[Callable[..., list[int]]]:
    """Run a function in so many processes that find in their environment what torchrun would say; their exit codes."""
    import torch

    before = torch.get_num_threads()
    # Threads do not survive a fork.
    torch.set_num_threads(1)
    yield _in_processes
    torch.set_num_threads(before)


@pytest.fixture
def in_two_processes(in_processes: Callable[..., list[int]]) -> Callable[[Callable[[], None]], list[int]]:
    """Run a function in two processes."""
    return in_processes


def _in_processes(run: Callable[[], None], num: int = 2) -> list[int]:
    from patchssl.ranks import process_group

    port = free_port()

    def start(number: int) -> None:
        place = {"RANK": str(number), "WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= place
        with process_group():
            run()

    # Forked, since importing torch again would take most of the time.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=start, args=(number,)) for number in range(num)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
            pytest.fail("a process waits for the other")
    return [process.exitcode or 0 for process in processes]


class Launched:
    """Processes that run one command line together; what each says on stderr goes into a file of its own."""

    def __init__(self, folder: Path, arguments: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        folder.mkdir()
        self.environments = environments
        self._files = [folder / f"{number}.txt" for number in range(len(environments))]
        context = multiprocessing.get_context("fork")
        self.processes = [
            context.Process(target=self._run, args=(file, list(arguments), dict(environment)))
            for file, environment in zip(self._files, environments, strict=True)
        ]
        for process in self.processes:
            process.start()

    @staticmethod
    def _run(told: Path, arguments: list[str], environment: dict[str, str]) -> None:
        from patchssl.cli.main import main

        os.setsid()  # so that a signal for all reaches the loader's processes, too
        os.environ |= environment
        sys.stderr = told.open("w", buffering=1)
        os.dup2(sys.stderr.fileno(), 2)
        sys.exit(main(arguments))

    def told(self, number: int) -> str:
        """What a process has said on stderr."""
        return self._files[number].read_text()

    def errors(self) -> list[str]:
        """The lines of all processes that begin with `Error: `."""
        lines = [line for number in range(len(self.processes)) for line in self.told(number).splitlines()]
        return [line for line in lines if line.startswith("Error: ")]

    def signal(self, number: int, *processes: int) -> None:
        """Send a signal to these processes, or to all, and to what they have started."""
        for process in [self.processes[index] for index in processes] or self.processes:
            assert process.pid is not None
            os.killpg(process.pid, number)

    def wait_for(self, path: Path) -> None:
        """Return when a file is there."""
        until = time.monotonic() + 60
        while not path.exists():
            assert all(process.is_alive() for process in self.processes), self.errors()
            assert time.monotonic() < until, path
            time.sleep(0.01)

    def ends(self, timeout_s: float = 60) -> list[int]:
        """The exit codes of all processes."""
        until = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        alive = [process for process in self.processes if process.is_alive()]
        for process in alive:
            process.kill()
        assert not alive, f"{len(alive)} processes still run; {self.errors()}"
        return [process.exitcode or 0 for process in self.processes]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Start a command line in several processes, by default as torchrun would; forked, which saves importing torch."""
    import torch
    import torch.distributed.fsdp
    import torch.distributed.tensor

    started: list[Launched] = []

    def start(
        *arguments: str,
        environments: Sequence[Mapping[str, str]] | None = None,
        only: int | None = None,
        **common: str,
    ) -> Launched:
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **common}
        ranks = range(2) if only is None else [only]
        environments = environments or [{**common, "RANK": str(rank)} for rank in ranks]
        started.append(Launched(tmp_path / f"told-{len(started)}", arguments, environments))
        return started[-1]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield start
    torch.set_num_threads(before)
    for each in started:
        for process in each.processes:
            process.kill()


def free_port() -> str:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


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
