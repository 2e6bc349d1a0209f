"""Appended lines are whole or not there."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchssl.appending import AppendedLines
from patchssl.errors import CheckpointError
from patchssl.monitor import MetricsFile


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond a size: writes fail as they do on a full disk."""
    before, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def append(path: Path, *texts: str) -> None:
    lines = AppendedLines(path)
    for text in texts:
        lines.write(text)
    lines.close()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b"new\n"),
        (b"a\nb\n", b"a\nb\nnew\n"),
        (b'a\n{"step": 3, "lo', b"a\nnew\n"),
        (b"torn", b"new\n"),
        (b"\n", b"\nnew\n"),
        (b"a\n" + b"x" * 200_000, b"a\nnew\n"),  # longer than what is looked at at a time
        (b"x" * 65_535 + b"\n" + b"y" * 65_536, b"x" * 65_535 + b"\nnew\n"),
    ],
    ids=["empty", "whole", "torn", "only-torn", "one-end", "long", "on-the-edge"],
)
def test_a_torn_last_line_goes_before_the_next_comes(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "lines"
    path.write_bytes(before)
    append(path, "new")
    assert path.read_bytes() == after


@given(content=st.binary(max_size=60), cut=st.integers(0, 60))
def test_every_line_that_ended_stays(tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines"
    path.write_bytes(content[:cut])
    append(path)
    whole = content[:cut].split(b"\n")[:-1]
    assert path.read_bytes() == b"".join(line + b"\n" for line in whole)


def test_a_new_file_and_letters_of_all_kinds(tmp_path: Path) -> None:
    append(tmp_path / "lines", "ä", "\udcff")
    assert (tmp_path / "lines").read_bytes() == "ä\n\\udcff\n".encode()


def test_a_full_disk_takes_no_part_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = AppendedLines(path)
    lines.write("x" * 50)
    with files_of_at_most(70), pytest.raises(OSError, match="File too large"):
        lines.write("y" * 50)
    assert path.read_text() == "x" * 50 + "\n"
    lines.write("z")
    lines.close()
    lines.close()
    assert path.read_text() == "x" * 50 + "\nz\n"


def test_metrics_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st')
    metrics = MetricsFile(path)
    with files_of_at_most(20), pytest.raises(CheckpointError, match=r"metrics.jsonl: File too large; free some space"):
        metrics.write({"step": 1, "loss": 1.5})
    metrics.write({"step": 1, "loss": 1.5})
    metrics.close()
    assert path.read_text() == '{"step": 0}\n{"step": 1, "loss": 1.5}\n'
    with pytest.raises(CheckpointError, match="Is a directory"):
        MetricsFile(tmp_path)
