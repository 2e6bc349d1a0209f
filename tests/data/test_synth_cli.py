"""`patchssl data synth`."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from patchssl.cli.data import data
from patchssl.errors import DataError


def test_only_the_path_goes_to_stdout(tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    done = CliRunner().invoke(data, ["synth", str(out), "--num-images", "24", "--image-size", "32", "--seed", "3"])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{out}\n"
    assert "folder: 12 train and 12 val images of 12 classes" in done.stderr
    assert done.stderr.count("drew ") == 4
    assert {path.name for path in out.iterdir()} == {"folder", "copydays", "revisited"}


def test_quiet_says_nothing_but_the_path(tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    done = CliRunner().invoke(data, ["synth", str(out), "--num-images", "24", "--image-size", "32", "--quiet"])
    assert (done.stdout, done.stderr) == (f"{out}\n", "")


def test_a_refusal_reaches_the_root_as_an_error_of_ours(tmp_path: Path) -> None:
    done = CliRunner().invoke(data, ["synth", str(tmp_path / "drawn"), "--num-images", "5"])
    assert isinstance(done.exception, DataError)
    assert done.stdout == ""


@pytest.mark.parametrize("word", ["OUT", "--num-images", "--image-size", "--seed", "patchssl data synth drawn"])
def test_help_teaches(word: str) -> None:
    assert word in CliRunner().invoke(data, ["synth", "--help"]).stdout
