"""The shared options: values, defaults, limits, and the device that follows from --device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result

from patchssl.cli import options
from patchssl.cli.index_options import IndexOptions, index_options
from patchssl.errors import ConfigError
from patchssl.user_cache import user_cache


def run(decorator: Callable[[Any], Any], *arguments: str) -> tuple[Result, dict[str, Any]]:
    """Run a command that has one option, and return the values that it got."""
    got: dict[str, Any] = {}

    @click.command()
    @decorator
    def command(**values: Any) -> None:
        got.update(values)

    return CliRunner().invoke(command, list(arguments)), got


@pytest.mark.parametrize(
    ("decorator", "arguments", "expected"),
    [
        (options.device_option(), [], {"device": "auto"}),
        (options.device_option(), ["--device", "cuda"], {"device": "cuda"}),
        (options.device_option(default=None), [], {"device": None}),
        (options.precision_option(), [], {"precision": "auto"}),
        (options.precision_option(), ["--precision", "bf16"], {"precision": "bf16"}),
        (options.workers_option(), [], {"workers": options.usable_workers()}),
        (options.workers_option(), ["--workers", "0"], {"workers": 0}),
        (options.workers_option(configured=True), [], {"workers": None}),
        (options.batch_size_option(default=64), [], {"batch_size": 64}),
        (options.batch_size_option(default=64), ["--batch-size", "1"], {"batch_size": 1}),
        (options.seed_option(), [], {"seed": 0}),
        (options.seed_option(default=None), [], {"seed": None}),
        (options.seed_option(), ["--seed", str(2**32 - 1)], {"seed": 2**32 - 1}),
        (options.results_option(), [], {"results": Path("results/rows")}),
        (options.results_option(), ["--results", "elsewhere"], {"results": Path("elsewhere")}),
        (options.no_record_option(), [], {"no_record": False}),
        (options.no_record_option(), ["--no-record"], {"no_record": True}),
        (options.format_option(), [], {"output_format": "table"}),
        (options.format_option(), ["--format", "json"], {"output_format": "json"}),
        (options.quiet_option(), [], {"quiet": False}),
        (options.quiet_option(), ["-q"], {"quiet": True}),
    ],
)
def test_values(decorator: options.Decorator, arguments: list[str], expected: dict[str, Any]) -> None:
    result, got = run(decorator, *arguments)
    assert result.exit_code == 0, result.output
    assert got == expected


@pytest.mark.parametrize(
    ("decorator", "arguments"),
    [
        (options.device_option(), ["--device", "tpu"]),
        (options.precision_option(), ["--precision", "fp64"]),
        (options.workers_option(), ["--workers", "-1"]),
        (options.batch_size_option(default=64), ["--batch-size", "0"]),
        (options.seed_option(), ["--seed", "-1"]),
        (options.seed_option(), ["--seed", str(2**32)]),
        (options.format_option(), ["--format", "xml"]),
    ],
)
def test_values_out_of_range_are_wrong_usage(decorator: options.Decorator, arguments: list[str]) -> None:
    result, got = run(decorator, *arguments)
    assert result.exit_code == 2
    assert got == {}


def test_results_that_is_a_file_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("")
    result, _ = run(options.results_option(), "--results", str(tmp_path / "rows"))
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("decorator", "default"),
    [
        (options.device_option(), "auto"),
        (options.device_option(default=None), "(from the configuration)"),
        (options.precision_option(default=None), "(from the configuration)"),
        (options.workers_option(), "(the usable cores, at most 8)"),
        (options.workers_option(configured=True), "(from the configuration)"),
        (options.batch_size_option(default=64), "64"),
        (options.batch_size_option(default=None), "(from the configuration)"),
        (options.seed_option(), "0"),
        (options.seed_option(default=None), "(from the configuration)"),
        (options.results_option(), "results/rows"),
        (options.format_option(), "table"),
    ],
)
def test_help_tells_the_default(decorator: options.Decorator, default: str) -> None:
    result, _ = run(decorator, "--help")
    assert f"default: {default}" in " ".join(result.output.split())


def test_usable_workers_is_a_small_positive_number() -> None:
    assert 1 <= options.usable_workers() <= 8


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(False, False, "cpu"), (True, False, "cuda"), (False, True, "mps"), (True, True, "cuda")],
)
def test_auto_takes_the_fastest_device(cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert options.resolve_device("auto") == expected
    assert options.resolve_device("cpu") == "cpu"
    assert options.resolve_device(expected) == expected


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_absent_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"--device {name}: .* use one of auto, cpu$"):
        options.resolve_device(name)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="allowed: auto, cpu, cuda, mps"):
        options.resolve_device("tpu")


def test_the_cache_is_where_the_variable_says_or_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATCHSSL_CACHE", "given")
    assert user_cache() == Path("given")
    monkeypatch.setenv("PATCHSSL_CACHE", "")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache() == Path("/home/me/.cache/patchssl")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "patchssl"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache() == Path("/home/me/.cache/patchssl")
    monkeypatch.setattr("sys.platform", "darwin")
    assert user_cache() == Path("/home/me/Library/Caches/patchssl")


def test_each_process_of_a_host_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options.own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert options.own_device("cuda") == "cuda:1"
    assert options.own_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="process 1 of this host finds 1 GPUs"):
        options.own_device("cuda")


def test_a_task_of_srun_takes_its_gpu_by_number_or_the_only_one_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "6", "SLURM_LOCALID": "2"}
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert options.own_device("cuda") == "cuda:2"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert options.own_device("cuda") == "cuda:0"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="process 2 of this host finds 2 GPUs"):
        options.own_device("cuda")


def test_processes_of_a_host_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)), raising=False)
    assert options.usable_workers() == options.usable_workers(shared=True) == 8
    for name, value in {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert (options.usable_workers(), options.usable_workers(shared=True)) == (8, 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert options.usable_workers(shared=True) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], IndexOptions(index="Flat", parameters=None)),
        (["--index", "HNSW32"], IndexOptions(index="HNSW32")),
        (
            ["--index", "IVF64,PQ8", "--index-parameters", "nprobe=4,ht=60"],
            IndexOptions(index="IVF64,PQ8", parameters="nprobe=4,ht=60"),
        ),
    ],
)
def test_an_index_and_its_parameters_come_together(arguments: list[str], expected: IndexOptions) -> None:
    result, got = run(index_options, *arguments)
    assert result.exit_code == 0, result.output
    assert got == {"index_options": expected}
    expected.check(64)


def test_parameters_of_exact_search_are_wrong_usage() -> None:
    result, got = run(index_options, "--index-parameters", "nprobe=4")
    assert result.exit_code == 2
    assert "for an --index other than Flat" in result.output
    assert got == {}


def test_an_index_is_refused_before_the_work() -> None:
    IndexOptions().check(64)
    with pytest.raises(ConfigError, match="cuts 64 dimensions into 7 parts"):
        IndexOptions(index="IVF64,PQ7").check(64)
    with pytest.raises(ConfigError, match="has no parameter 'efSearch'"):
        IndexOptions(index="IVF64,PQ8", parameters="efSearch=7").check(64)


def test_help_teaches_indexes() -> None:
    result, _ = run(index_options, "--help")
    told = " ".join(result.output.split())
    for words in ("--index FACTORY", "IVF1024,PQ48", "nprobe=16", "[default: Flat]", "(of FAISS)"):
        assert words in told, told
