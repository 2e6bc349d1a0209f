"""The root of the command line: quick help, exit codes, one line for every failure."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest

from patchssl import __version__
from patchssl.cli.lazy import Entry
from patchssl.cli.main import COMMANDS, main, root
from patchssl.errors import DataError

SLOW_MODULES = (
    "PIL",
    "faiss",
    "lightning_fabric",
    "matplotlib",
    "numpy",
    "pandas",
    "pydantic",
    "rich",
    "scipy",
    "sklearn",
    "timm",
    "torch",
    "torchvision",
)

# Asks every command of the tree for its help and reports which slow modules had come by then.
WALK = f"""
import contextlib, io, json, sys
import click
from patchssl.cli.main import main, root

def paths(group, path):
    yield path
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            yield from paths(group.get_command(context, name), [*path, name])

report = {{}}
for path in paths(root, []):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        code = main([*path, "--help"])
    assert code == 0, path
    slow = [name for name in {SLOW_MODULES!r} if name in sys.modules]
    report[" ".join(path)] = {{"first_line": text.getvalue().splitlines()[0], "slow": slow}}
print(json.dumps(report))
"""

Install = Callable[[BaseException], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Give the command line a command `fail` that raises what it is told to."""

    def install_failure(error: BaseException) -> None:
        @click.command()
        def fail() -> None:
            raise error

        module = ModuleType("failing_command")
        module.__dict__["fail"] = fail
        monkeypatch.setitem(sys.modules, "failing_command", module)
        monkeypatch.setitem(COMMANDS, "fail", Entry("failing_command:fail", "Fail."))

    return install_failure


def failed_like(code: int, err: str) -> str:
    """Check that a command failed with exactly one line, and return what it says."""
    assert code == 1
    assert err.count("\n") == 1
    assert err.startswith("Error: ")
    return err.removeprefix("Error: ").rstrip("\n")


def test_help_of_every_command_imports_nothing_slow(installed_environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WALK], cwd=tmp_path, env=installed_environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"", "demo", "pretrain", "eval", "eval knn", "data", "data synth"} <= set(report)
    assert {"results", "results table", "results compare"} <= set(report)
    assert {path: found["slow"] for path, found in report.items() if found["slow"]} == {}
    for path, found in report.items():
        assert found["first_line"].startswith(f"Usage: patchssl {path}".rstrip())


def test_listing_imports_no_command(installed_environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys; from patchssl.cli.main import main; main(['--help']); "
        "assert not [name for name in sys.modules if name.startswith('patchssl.cli.d')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=installed_environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout and entry.help in done.stdout for name, entry in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_entry_leads_to_a_command_with_help(name: str) -> None:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    assert command.help
    assert COMMANDS[name].help


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"patchssl, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Usage: patchssl"),
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option"),
        (["fail", "superfluous"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: list[str], said: str, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(AssertionError("must not run"))
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err


def test_an_error_of_ours_is_one_line(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of files are shown so that they can be told apart."""
    install(DataError("12 of 20 images are unreadable, for instance a\nb  c\td\x1b[31m\u2028é.jpg"))
    said = failed_like(main(["fail"]), capsys.readouterr().err)
    assert said == r"12 of 20 images are unreadable, for instance a\nb  c\td\x1b[31m\u2028é.jpg"


def test_any_other_error_is_one_line_with_its_class(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(ZeroDivisionError("division\nby zero"))
    said = failed_like(main(["fail"]), capsys.readouterr().err)
    assert said == "ZeroDivisionError: division by zero (run again with --debug for the traceback)"


@pytest.mark.parametrize("arguments", [["--debug", "fail"], ["fail", "--debug"]])
@pytest.mark.parametrize("error", [DataError("no images"), ZeroDivisionError("no images")])
def test_debug_shows_the_traceback(
    arguments: list[str], error: Exception, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(error)
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert "raise error" in err
    assert err.splitlines()[-1].startswith("Error: ")
    assert "--debug" not in err


def test_debug_after_two_dashes_is_an_argument(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(AssertionError("must not run"))
    assert main(["fail", "--", "--debug"]) == 2
    assert "--debug" in capsys.readouterr().err


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), click.Abort()])
def test_interruption_exits_with_130(
    interruption: BaseException, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(interruption)
    assert main(["fail"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_command_may_choose_its_exit_code(install: Install) -> None:
    install(click.exceptions.Exit(7))
    assert main(["fail"]) == 7


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_a_closed_pipe_is_quiet(argument: str, installed_environment: dict[str, str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "patchssl", argument],
            cwd=tmp_path,
            env=installed_environment,
            stdout=writer,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


def test_a_pipe_that_broke_elsewhere_is_reported(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(BrokenPipeError(32, "a worker is gone"))
    assert "a worker is gone" in failed_like(main(["fail"]), capsys.readouterr().err)


def test_torch_and_torchvision_of_different_builds(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError("operator torchvision::nms does not exist")
    except RuntimeError as cause:
        consequence = ImportError("cannot import name 'transforms'")
        consequence.__cause__ = cause
    install(consequence)
    said = failed_like(main(["fail"]), capsys.readouterr().err)
    assert "pip install --force-reinstall torch torchvision" in said
    assert "--debug" not in said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    ],
)
def test_out_of_memory_says_what_to_make_smaller(
    error: Exception, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(error)
    said = failed_like(main(["fail"]), capsys.readouterr().err)
    assert said.startswith("out of memory (")
    assert "--batch-size" in said
    assert "--debug" not in said


def test_other_runtime_errors_are_not_taken_for_memory(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert failed_like(main(["fail"]), capsys.readouterr().err).startswith("RuntimeError: mat1")
