"""What may be begun where, and what a run folder says of it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from patchssl.checkpoint_folder import save_checkpoint
from patchssl.config import Config
from patchssl.errors import CheckpointError
from patchssl.recipes import parse_config
from patchssl.resumable import Hardware, identity
from patchssl.run_folder import begin_run, find_start, holds_run, list_unreadable, prepare_run

HARDWARE = Hardware("cpu", "fp32")


def config(**train: Any) -> Config:
    return parse_config({"train": train})


def save(run: Path, step: int, **train: Any) -> Path:
    content = {
        "config": config(**train).model_dump(mode="json"),
        "student": {"w": torch.zeros(3)},
        "teacher": {},
        **identity(["a", "b"], HARDWARE),
    }
    return save_checkpoint(run / "checkpoints", content, step=step, keep_last=3)


def prepare(run: Path, *, resume: bool = False, overwrite: bool = False, **train: Any) -> None:
    prepare_run(run, config(**train), device="cpu", resume=resume, overwrite=overwrite)


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_start_adds_a_line_and_the_environment_is_that_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["patchssl", "first"])
    prepare(run, steps=10)
    save(run, 4, steps=10)
    monkeypatch.setattr("sys.argv", ["patchssl", "second"])
    prepare(run, resume=True, steps=20, keep_last=7)
    first, second = history(run)
    assert (first["step"], first["command"], first["changed"]) == (0, ["patchssl", "first"], {})
    assert (second["step"], second["command"]) == (4, ["patchssl", "second"])
    assert second["changed"] == {
        "train.steps": {"before": 10, "now": 20},
        "train.keep_last": {"before": 3, "now": 7},
    }
    assert {"time", "patchssl", "torch", "python", "host", "device", "num_processes"} <= set(first)
    assert json.loads((run / "environment.json").read_text())["command"] == ["patchssl", "first"]
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 20


def test_a_folder_that_was_only_prepared_may_be_resumed_or_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for resume in (False, True):
        run = tmp_path / str(resume)
        prepare(run)
        assert holds_run(run)
        (run / ".log.txt.x.part").touch()
        with caplog.at_level(logging.INFO):
            caplog.clear()
            prepare(run, resume=resume)
        assert ("holds no checkpoint yet; beginning at step 0" in caplog.text) == resume
        assert names(run) == ["config.yaml", "environment.json", "history.jsonl"]
        assert [entry["step"] for entry in history(run)] == [0, 0]


def test_killed_before_anything_was_whole(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.yaml.abc.part").write_text("data")
    assert not holds_run(run)
    prepare(run)
    assert names(run) == ["config.yaml", "environment.json", "history.jsonl"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="other exists and is not a run folder"):
        prepare(tmp_path / "other")


def test_what_is_replaced_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(run)
    path = save(run, 1)
    save(run, 2)
    path.rename(f"{path}.damaged")
    (run / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match="already holds a run; go on with it by --resume, replace it by --over"):
        prepare(run)
    prepare(run, overwrite=True)
    assert names(run) == ["checkpoints", "config.yaml", "environment.json", "history.jsonl"]
    assert names(run / "checkpoints") == []
    assert len(history(run)) == 1


def test_only_a_damaged_checkpoint_is_no_fresh_start(tmp_path: Path) -> None:
    prepare(tmp_path)
    path = save(tmp_path, 1)
    path.rename(f"{path}.damaged")
    with pytest.raises(CheckpointError, match="is whole"):
        prepare(tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="already holds a run"):
        prepare(tmp_path)


@pytest.mark.parametrize("told", ["patchssl 0.0.9", "patchssl of unknown version"])
def test_a_run_of_the_format_before_is_refused_with_a_way_on(tmp_path: Path, told: str) -> None:
    prepare(tmp_path)
    content = {"config": Config().model_dump(mode="json"), "student": {}, "teacher": {}, "num_images": 2}
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "step-00000003.pt"
    torch.save({"format": 1, "kind": "patchssl-pretrain", "step": 3, **content}, path)
    (tmp_path / "environment.json").write_text('{"patchssl": "0.0.9"}' if told[-1] == "9" else "{}")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != "latest"}
    with pytest.raises(CheckpointError) as caught:
        prepare(tmp_path, resume=True)
    assert str(caught.value) == (
        f"{path} has format 1, made by {told}; this version resumes format 2 only, while evaluation reads both: go on "
        f"from its weights with --init {tmp_path} --init-heads in a new --output"
    )
    assert {file: file.read_bytes() for file in before} == before


def test_a_refused_resume_writes_nothing(tmp_path: Path) -> None:
    prepare(tmp_path, seed=1)
    save(tmp_path, 1, seed=1)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError, match=r"train.seed is 1 in the checkpoint and 2 in the configuration"):
        prepare(tmp_path, resume=True, seed=2)
    start = find_start(tmp_path, resume=True, overwrite=False)
    assert start.step == 1
    assert start.check(config(seed=1), ["a", "b"], HARDWARE) == []
    with pytest.raises(CheckpointError, match="on 2 images, DATA holds 1"):
        start.check(config(seed=1), ["a"], HARDWARE)
    with pytest.raises(CheckpointError, match="of other names"):
        start.check(config(seed=1), ["a", "c"], HARDWARE)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_the_start_of_a_run_keeps_no_tensors(tmp_path: Path) -> None:
    """They would keep the file of the checkpoint mapped, and its space taken when it is removed."""
    save(tmp_path, 1)
    content = find_start(tmp_path, resume=True, overwrite=False).content
    assert content is not None
    assert set(content) == {"config", "step", "num_images", "image_names_sha256", "hardware"}


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="exists and is not a run folder"):
        prepare(tmp_path / "file")
    start = find_start(tmp_path / "file" / "run", resume=False, overwrite=False)
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory; take another --output"):
        begin_run(tmp_path / "file" / "run", Config(), start, device="cpu")


def test_unreadable_images_are_listed_whole_or_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    list_unreadable(tmp_path, {})
    assert names(tmp_path) == []
    list_unreadable(tmp_path, {"b.png": "cut", "a\t.png": "empty"})
    assert (tmp_path / "unreadable.tsv").read_text() == '"a\t.png"\tempty\nb.png\tcut\n'
    list_unreadable(tmp_path / "gone", {"a": "cut"})
    assert "1 unreadable images, which could not be listed: cannot save" in caplog.text
