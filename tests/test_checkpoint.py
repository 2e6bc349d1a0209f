"""Checkpoints: whole or not there, safe to read, and named errors."""

import hashlib
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from patchssl.checkpoint import load_checkpoint
from patchssl.checkpoint_folder import checkpoints, save_checkpoint
from patchssl.errors import CheckpointError


def content(size: int = 3) -> dict[str, Any]:
    return {"config": {}, "student": {"w": torch.arange(size)}, "teacher": {}}


def test_what_is_saved_is_read_and_latest_moves(tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, content(), step=step, keep_last=3)
        assert (tmp_path / "latest").resolve().name == f"step-{step:08d}.pt"
    loaded = load_checkpoint(tmp_path / "latest")
    assert loaded["step"] == 10
    assert loaded["student"]["w"].tolist() == [0, 1, 2]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, content(), step=step, keep_last=2)
    assert [file.name for file in checkpoints(tmp_path)] == ["step-00000004.pt", "step-00000005.pt"]


def test_a_write_that_fails_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, content(), step=1, keep_last=1)
    before = (tmp_path / "step-00000001.pt").read_bytes()
    # A file-size limit behaves as a full disk does: writing stops in the middle.
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        import torch
        from patchssl.checkpoint_folder import save_checkpoint
        from patchssl.errors import CheckpointError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_checkpoint(Path(sys.argv[1]), {"student": torch.zeros(1_000_000)}, step=2, keep_last=1)
        except CheckpointError as error:
            sys.exit(f"told: {error}")
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "told: cannot save" in done.stderr
    assert "step-00000002.pt" in done.stderr
    assert "free some space and go on with --resume" in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["latest", "step-00000001.pt", "step-00000001.pt.sha256"]
    assert (tmp_path / "latest").read_bytes() == before


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, content(), step=1, keep_last=1)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_the_middle_of_a_file_is_ctrl_c_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, seen = hashlib.sha256().update, []

    class Digest:
        def update(self, data: memoryview) -> None:
            update(data)
            seen.append(len(data))
            if sum(seen) > 10_000:
                raise KeyboardInterrupt

    monkeypatch.setattr(hashlib, "sha256", Digest)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, content(50_000), step=1, keep_last=1)
    assert sum(seen) > 10_000
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_file_is_named_with_its_size(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, content(5000), step=1, keep_last=1)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(CheckpointError, match=r"step-00000001.pt \(20,000 bytes\) is damaged, truncated"):
        load_checkpoint(path)


@pytest.mark.parametrize("data", [b"", b"no weights at all", b"\x80\x04."])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "some.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged, truncated or no checkpoint"):
        load_checkpoint(path)


class RunsCode:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for name, write in (
        ("torch.pt", torch.save),
        ("plain.pt", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        write({"kind": RunsCode(str(marker))}, tmp_path / name)
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / name)
    assert not marker.exists()


def test_files_of_others_and_of_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"teacher": {}, "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of patchssl; it holds: teacher, epoch"):
        load_checkpoint(path)
    torch.save({"kind": "patchssl-pretrain", "format": 99}, path)
    with pytest.raises(CheckpointError, match="has format 99; this version reads formats 1 and 2"):
        load_checkpoint(path)
    torch.save({"kind": "patchssl-pretrain", "format": 1, "step": 1}, path)
    with pytest.raises(CheckpointError, match="incomplete: it lacks config, teacher, student"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_checkpoint(tmp_path / "missing.pt")
