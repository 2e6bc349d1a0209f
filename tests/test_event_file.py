"""The events that TensorBoard reads are the lines of metrics.jsonl."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from patchssl.errors import CheckpointError, ConfigError
from patchssl.event_file import EventFile, check_tensorboard, tag
from patchssl.monitor import MetricsFile


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """Tag → step → value, as TensorBoard shows them."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(name)]
        assert len(set(steps)) == len(steps)
        found[name] = {event.step: event.value for event in events.Scalars(name)}
    return found


def write(run: Path, steps: range, *, offset: float = 0.0) -> None:
    metrics, events = MetricsFile(run / "metrics.jsonl"), EventFile(run, first_step=steps.start)
    for step in steps:
        line = {"step": step, "loss": step / 7 + offset, "loss_cls": 1.5, "images": 64 * step, "lr": 1e-3}
        if step % 2:
            line["knn_top1"] = 0.25
        metrics.write(line)
        events.write(line)
    metrics.close()
    events.close()


def expected(run: Path) -> dict[str, dict[int, Any]]:
    """The same from metrics.jsonl, of which the last line of a step counts."""
    lines = {line["step"]: line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    found: dict[str, dict[int, Any]] = {}
    for step, line in lines.items():
        for name, value in line.items():
            if name != "step":
                found.setdefault(tag(name), {})[step] = pytest.approx(value, rel=1e-6)
    return found


def test_events_equal_the_lines(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    found = scalars(tmp_path)
    assert found == expected(tmp_path)
    assert set(found) == {"loss/total", "loss/cls", "progress/images", "schedule/lr", "knn/top1"}
    assert found["knn/top1"] == {1: 0.25, 3: 0.25}


def test_steps_that_are_done_again_replace_those_of_before(tmp_path: Path) -> None:
    write(tmp_path, range(8))
    write(tmp_path, range(5, 7), offset=100.0)
    found = scalars(tmp_path)
    # Lines of steps that were not done again are history to metrics.jsonl, and shown no more here.
    assert found["loss/total"] == {step: value for step, value in expected(tmp_path)["loss/total"].items() if step < 7}
    assert found["loss/total"][6] == pytest.approx(100 + 6 / 7)


def test_what_was_cut_off_in_a_crash_hides_nothing_of_what_follows(tmp_path: Path) -> None:
    write(tmp_path, range(4))
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    write(tmp_path, range(3, 6))
    assert scalars(tmp_path) == expected(tmp_path)


@pytest.mark.parametrize(
    ("name", "on_page"),
    [
        ("loss", "loss/total"),
        ("loss_patch", "loss/patch"),
        ("kl_patch", "loss/kl_patch"),
        ("below_uniform_cls", "loss/below_uniform_cls"),
        ("teacher_entropy_cls", "teacher/entropy_cls"),
        ("teacher_temperature", "schedule/teacher_temperature"),
        ("patch_weight", "schedule/patch_weight"),
        ("patch_pairs", "step/patch_pairs"),
        ("gradient_norm", "step/gradient_norm"),
        ("prototypes_used_cls", "prototypes/used_cls"),
        ("rank_cls", "rank/cls"),
        ("images_per_s", "speed/images_per_s"),
        ("data_wait_fraction", "speed/data_wait_fraction"),
        ("knn_ci95_low", "knn/ci95_low"),
        ("epoch", "progress/epoch"),
    ],
)
def test_the_headings_of_the_page(name: str, on_page: str) -> None:
    assert tag(name) == on_page


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("num_lines", [0, 3])
def test_a_full_disk_is_told_at_once_and_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_lines: int
) -> None:
    files: list[IO[Any]] = []
    opened = Path.open

    def noted(path: Path, mode: str) -> IO[Any]:
        files.append(opened(path, mode))
        return files[-1]

    monkeypatch.setattr(Path, "open", noted)
    events = EventFile(tmp_path, first_step=0)
    for step in range(num_lines):
        events.write({"step": step, "loss": 1.0})
    with opened(Path("/dev/full"), "wb") as full:
        os.dup2(full.fileno(), files[0].fileno())
    fails: list[Callable[[], None]] = [lambda: events.write({"step": num_lines, "loss": 1.0}), events.close]
    for fail in fails:
        with pytest.raises(CheckpointError) as told:
            fail()
        assert re.fullmatch(
            f"cannot write {tmp_path}/tensorboard/events.out.tfevents.*: No space left on device; free some space and "
            "go on with --resume",
            str(told.value),
        )
    monkeypatch.undo()
    assert scalars(tmp_path) == ({"loss/total": dict.fromkeys(range(num_lines), 1.0)} if num_lines else {})


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write .*: File exists"):
        EventFile(tmp_path, first_step=0)


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tensorboard()
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"needs the package tensorboard.* pip install 'patchssl\[log\]'"):
        check_tensorboard()
