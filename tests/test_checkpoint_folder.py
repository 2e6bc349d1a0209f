"""The checkpoints of a run: which are kept, and what becomes of damaged ones."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patchssl.checkpoint import load_checkpoint
from patchssl.checkpoint_folder import (
    checkpoints,
    damage,
    newest_whole,
    remove_leftovers,
    save_checkpoint,
)
from patchssl.checksums import checksum_path, file_sha256
from patchssl.errors import CheckpointError, FormatError

CONTENT: dict[str, Any] = {"config": {}, "student": {"w": torch.arange(500)}, "teacher": {}}


def save(folder: Path, *steps: int, **keep: Any) -> list[Path]:
    return [save_checkpoint(folder, CONTENT, step=step, **{"keep_last": 9, **keep}) for step in steps]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, None, [6]), (2, None, [5, 6]), (9, None, [0, 1, 2, 3, 4, 5, 6]), (1, 3, [0, 3, 6]), (2, 4, [0, 4, 5, 6])],
)
def test_which_are_kept(tmp_path: Path, keep_last: int, keep_every: int | None, kept: list[int]) -> None:
    save(tmp_path, *range(7), keep_last=keep_last, keep_every=keep_every)
    files = [f"step-{step:08d}.pt{end}" for step in kept for end in ("", ".sha256")]
    assert names(tmp_path) == ["latest", *files]
    assert (tmp_path / "latest").resolve().name == "step-00000006.pt"
    assert all(damage(path) is None for path in checkpoints(tmp_path))


def test_a_step_that_is_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (path,) = save(tmp_path, 1)
    assert names(tmp_path) == ["latest", path.name, f"{path.name}.sha256"]
    assert damage(path) is None


@pytest.mark.parametrize("name", ["step-00000002.pt", "step-00000002.pt.sha256", "latest"])
def test_at_no_moment_is_a_checkpoint_there_that_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As if killed when a file was to take its place: what is there then, is what the next start finds."""
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    replace, unlink = Path.replace, Path.unlink

    class Killed(BaseException):
        pass

    def until(path: Path, target: Path) -> Path:
        if target.name == name:
            monkeypatch.setattr(Path, "unlink", lambda *arguments, **options: None)
            raise Killed
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", until)
    with pytest.raises(Killed):
        save(folder, 2)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)
    assert [path.name for path in folder.glob(".*.part")]
    found = newest_whole(folder)
    assert found is not None
    assert found.name == ("step-00000002.pt" if name == "latest" else "step-00000001.pt")
    remove_leftovers(tmp_path)
    whole = [f"{path.name}{end}" for path in checkpoints(folder) for end in ("", ".sha256")]
    assert names(folder) == ["latest", *whole]
    assert (folder / "latest").resolve() == found


def flip(place: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(len(data) - 1, int(place * len(data)))] ^= 1
        path.write_bytes(data)

    return change


DAMAGES: dict[str, Callable[[Path], Any]] = {
    **{f"bit at {place}": flip(place) for place in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)},
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "no checksum": lambda path: checksum_path(path).unlink(),
    "empty checksum": lambda path: os.truncate(checksum_path(path), 0),
    "checksum of another": lambda path: checksum_path(path).write_text(f"{'0' * 64}  {path.name}\n", encoding="utf-8"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_of_a_damaged_checkpoint_is_told_and_the_one_before_taken(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = save(tmp_path, 1, 2)
    written = file_sha256(second)
    DAMAGES[kind](second)
    found = file_sha256(second)
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == first
    (told,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(f"checkpoint {second} ")
    assert "going on from step-00000001.pt, the damaged one is now step-00000002.pt.damaged" in told
    if "checksum" not in kind:
        assert f"has SHA-256 {found}, but {written} was written" in told
    assert names(tmp_path) == ["latest", first.name, f"{first.name}.sha256", f"{second.name}.damaged"]
    assert (tmp_path / "latest").resolve() == first
    assert load_checkpoint(tmp_path / "latest")["step"] == 1
    # Told once, and the step may be saved again.
    caplog.clear()
    assert newest_whole(tmp_path) == first
    assert caplog.text == ""
    assert save(tmp_path, 2) == [newest_whole(tmp_path)]


def test_where_none_is_whole_each_is_named_and_all_stay(tmp_path: Path) -> None:
    first, second, third = save(tmp_path, 1, 2, 3)
    flip(0.5)(first)
    os.truncate(second, 0)
    checksum_path(third).unlink()
    before = names(tmp_path)
    for _ in range(2):
        with pytest.raises(CheckpointError) as caught:
            newest_whole(tmp_path)
        told = str(caught.value)
        assert told.startswith(f"no checkpoint in {tmp_path} is whole: step-00000003.pt (")
        assert "cannot be checked: step-00000003.pt.sha256 is missing" in told
        assert "; step-00000002.pt (0 bytes) has SHA-256 e3b0c442" in told
        assert "; step-00000001.pt (" in told
        assert names(tmp_path) == before


def test_only_damaged_ones_are_no_fresh_folder(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    path.rename(tmp_path / f"{path.name}.damaged")
    with pytest.raises(CheckpointError, match=r"is whole: step-00000001.pt.damaged was found damaged before"):
        newest_whole(tmp_path)


def test_no_checkpoints(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None
    assert newest_whole(tmp_path / "missing") is None


@pytest.mark.parametrize("link", [None, "step-gone.pt", "step-00000001.pt"])
def test_latest_is_put_right(tmp_path: Path, link: str | None) -> None:
    _, second = save(tmp_path, 1, 2)
    (tmp_path / "latest").unlink()
    if link is not None:
        (tmp_path / "latest").symlink_to(link)
    assert newest_whole(tmp_path) == second
    assert (tmp_path / "latest").resolve() == second


def without_checksum(folder: Path, number: int) -> Path:
    path = folder / "step-00000005.pt"
    torch.save({**CONTENT, "format": number, "kind": "patchssl-pretrain", "step": 5}, path)
    return path


def test_the_format_before_has_no_checksums(tmp_path: Path) -> None:
    path = without_checksum(tmp_path, 1)
    assert newest_whole(tmp_path) == path
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"step-00000005.pt has no checksum, and .* is damaged, truncated"):
        newest_whole(tmp_path)


def test_a_format_of_the_future_is_not_damaged(tmp_path: Path) -> None:
    without_checksum(tmp_path, 3)
    with pytest.raises(FormatError, match="has format 3; this version reads formats 1 and 2"):
        newest_whole(tmp_path)
    assert names(tmp_path) == ["step-00000005.pt"]
