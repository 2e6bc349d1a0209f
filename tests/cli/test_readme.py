"""What the README tells people to type is accepted by the command line."""

import re
import shlex
from pathlib import Path

import pytest

from patchssl.cli.main import main


def commands_in(text: str) -> list[str]:
    """The lines of the fenced blocks of a Markdown text."""
    blocks = re.findall(r"^```\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def is_accepted(line: str) -> bool:
    """Whether command and options exist; `--help` keeps the command from running."""
    return main([*shlex.split(line)[1:], "--help"]) == 0


def test_the_first_screen_holds_two_commands(repository: Path) -> None:
    first_screen = (repository / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
    assert commands_in(first_screen) == ["pip install . && patchssl demo", "pip install '.[test]' && pytest"]


def test_every_command_of_the_readme_is_accepted(repository: Path) -> None:
    lines = commands_in((repository / "README.md").read_text(encoding="utf-8"))
    commands = [line for line in lines if line.startswith("patchssl ")]
    assert len(commands) >= 6
    assert [line for line in commands if not is_accepted(line)] == []


@pytest.mark.parametrize("line", ["patchssl data synth OUT --nonsense", "patchssl nonsense", "patchssl data nonsense"])
def test_what_does_not_exist_is_noticed(line: str) -> None:
    assert not is_accepted(line)
