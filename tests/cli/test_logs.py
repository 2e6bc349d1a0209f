"""Log lines: stderr and not stdout, warnings only when quiet, everything in the file."""

import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from patchssl.cli.logs import configure_logging, log_file

LOGGER = logging.getLogger("patchssl.somewhere")


class Terminal(io.StringIO):
    """A stderr that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    package = logging.getLogger("patchssl")
    handlers, level = list(package.handlers), package.level
    yield
    package.handlers[:] = handlers
    package.setLevel(level)


def speak() -> None:
    LOGGER.debug("a detail")
    LOGGER.info("step %d", 3)
    LOGGER.warning("collapsed")


def test_plain_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    speak()
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second = printed.err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO step 3", first)
    assert second.endswith(" WARNING collapsed")


def test_quiet_leaves_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(quiet=True)
    speak()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" WARNING collapsed")


def test_the_last_call_counts(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(quiet=True)
    configure_logging()
    configure_logging()
    speak()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_handlers_of_others_stay() -> None:
    handler = logging.NullHandler()
    logging.getLogger("patchssl").addHandler(handler)
    configure_logging()
    assert handler in logging.getLogger("patchssl").handlers


def test_on_a_terminal_brackets_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure_logging()
    LOGGER.info("shape [3, 4] in [red]")
    assert "shape [3, 4] in [red]" in re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())


def test_the_file_gets_every_line_and_is_appended_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.txt"
    path.write_text("an earlier run\n", encoding="utf-8")
    configure_logging(quiet=True)
    with log_file(path):
        speak()
    LOGGER.info("afterwards")
    earlier, first, second = path.read_text(encoding="utf-8").splitlines()
    assert earlier == "an earlier run"
    assert first.endswith(" INFO step 3")
    assert second.endswith(" WARNING collapsed")
    assert len(capsys.readouterr().err.splitlines()) == 1
