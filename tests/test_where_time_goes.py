"""Stages of real steps and runs: where each begins and ends, that none is lost, and that results do not change."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchssl.config import Config
from patchssl.data.sources import open_unlabelled
from patchssl.derived import derive
from patchssl.draws import uniforms
from patchssl.pretrain import pretrain
from patchssl.recipes import parse_config
from patchssl.run_folder import prepare_run
from patchssl.stage_clock import UNTIMED, EventLaps, HostLaps, Stage, StageClock, Stages
from patchssl.step_clock import COMPUTING, LOADING, TRAINING
from patchssl.step_values import scheduled
from patchssl.structs import Boxes, SampleKeys, ViewGroup
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import Trainer

NUM_IMAGES = 4


def config(teacher: list[float] | None = None, **train: Any) -> Config:
    model = {"arch": "vit_tiny_patch16_224", "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "drop_path": 0.2}
    heads = {"head_hidden": 16, "head_bottleneck": 8, "cls_prototypes": 12, "patch_prototypes": 10}
    return parse_config(
        {
            "data": {"division": "views"},
            "views": {"global_size": 16, "local_size": 8, "num_local": 2},
            "photometric": {"patch_probability": [0.5, 0.5, 0.5], "teacher_patch_probability": teacher},
            "model": model | heads,
            "train": {"steps": 5, "batch_size": NUM_IMAGES, "checkpoint_every_steps": 2, **train},
            "log": {"every_steps": 2},
        }
    )


class Recorded:
    """Keeps the path of every stage that is entered, as "loss/forward"."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._open: list[str] = []

    def stage(self, name: Stage) -> AbstractContextManager[None]:
        return self._inside(name)

    @contextmanager
    def _inside(self, name: str) -> Iterator[None]:
        self._open.append(name)
        self.paths.append("/".join(self._open))
        yield
        self._open.pop()


class Work:
    """A GPU's event on a device that has done everything at once."""

    def record(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: Any) -> float:
        return 1.0


def trained(clock: Stages, settings: Config) -> dict[str, Any]:
    """The losses and weights of two steps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = StudentTeacher(derive(settings, 100).config)
    trainer = Trainer(networks, device="cpu", precision="fp32", clock=clock)
    keys = SampleKeys(torch.zeros(NUM_IMAGES, dtype=torch.int64), torch.arange(NUM_IMAGES))
    groups = [_group(keys, 500, 2, 16, 20.0), _group(keys, 501, 2, 8, 8.0)]
    losses = [trainer.step(groups, keys, scheduled(trainer.config, step, 5)).loss for step in (2, 3)]
    return {"losses": losses, "student": networks.student.state_dict(), "centers": networks.centers}


def _group(keys: SampleKeys, stream: int, num_views: int, side: int, extent: float) -> ViewGroup:
    corners, pixels = uniforms(0, keys, stream, num_views * (4 + 3 * side * side)).tensor_split([num_views * 4], dim=1)
    corners = corners.view(NUM_IMAGES, num_views, 4).double() * 6
    corners[..., 2:] += extent
    boxes = Boxes(corners, torch.zeros(NUM_IMAGES, num_views, dtype=torch.bool))
    return ViewGroup((pixels.reshape(NUM_IMAGES, num_views, 3, side, side) * 255).byte(), boxes)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"accumulate": 2},
    {"accumulate": 2, "checkpoint_activations": True, "teacher": [1.0, 0.0]},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_where_each_stage_of_a_step_begins(variant: dict[str, Any]) -> None:
    clock, num_parts = Recorded(), variant.get("accumulate", 1)
    trained(clock, config(**variant))
    # Twice two groups of views are moved and seen by the student, of which the teacher sees one; in each of two steps.
    assert Counter(clock.paths) == {
        "loss": 2,
        "loss/augmenting": 2,
        "loss/augmenting/moving": 2 * 2 * num_parts,
        "loss/forward": 2 * (2 + 1) * num_parts,
        "loss/moving": 2 * num_parts,
        "loss/backward": 2 * num_parts,
        "update": 2,
    }
    one_step = clock.paths[: len(clock.paths) // 2]
    assert clock.paths == one_step * 2
    assert (one_step[0], one_step[-2], one_step[-1]) == ("loss", "loss/backward", "update")


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_result_changes_by_being_timed(variant: dict[str, Any]) -> None:
    wanted = trained(UNTIMED, config(**variant))
    for clock in (StageClock(), StageClock(EventLaps(Work))):
        torch.testing.assert_close(trained(clock, config(**variant)), wanted, rtol=0, atol=0)
        assert set(COMPUTING) <= clock.read().keys()


class Ticks(HostLaps):
    """A second passes with every look at the clock; remembers when it was read."""

    def __init__(self) -> None:
        super().__init__(itertools.count().__next__)
        self.read_at: list[float] = []

    def read(self) -> dict[str, float]:
        self.read_at.append(self._last)
        return super().read()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(10):
        pixels = np.random.default_rng(number).integers(256, size=(20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run(settings: Config, images: Path, output: Path, **options: Any) -> list[dict[str, float]]:
    """As the command line does; gives what the run says in metrics.jsonl."""
    prepare_run(output, settings, device="cpu", resume=options.get("resume", False), overwrite=False)
    source = open_unlabelled(images)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = StudentTeacher(derive(settings, len(source)).config)
        pretrain(networks, source, output, **{"device": "cpu", "precision": "fp32", "workers": 0, **options})
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("workers", "variant"), [(0, {}), (2, {"accumulate": 2, "teacher": [0.0, 0.5]})])
def test_nothing_of_the_time_is_lost(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, variant: dict[str, Any]
) -> None:
    ticks = Ticks()
    monkeypatch.setattr("patchssl.pretrain.clock_of", lambda device: StageClock(ticks))
    lines = run(config(**variant), images, tmp_path / "run", workers=workers)
    assert [line["step"] for line in lines] == [0, 2, 4]
    # The clock is read when it begins, for each line, and at the end.
    for line, (since, until) in zip(lines, itertools.pairwise(ticks.read_at[:-1]), strict=True):
        assert sum(line[f"seconds_{name}"] for name in TRAINING) == until - since
        assert all(line[f"seconds_{name}"] > 0 for name in ("waiting", *COMPUTING, "logging", "other"))
        assert line["seconds_loader_reading"] > 0
        assert line["seconds_loader_decoding"] > 0
    # What follows a line is in the next: the checkpoint after two steps and after four, as far as there is one.
    assert [line["seconds_saving"] > 0 for line in lines] == [False, True, True]


def test_an_end_is_told_once_and_of_this_start_alone(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="patchssl.watch")
    steps = iter(range(1, 99))
    run(config(), images, tmp_path / "run", stop_requested=lambda: next(steps) == 3)
    lines = run(config(), images, tmp_path / "run", resume=True, workers=2)
    first, second = [record.getMessage() for record in caplog.records if "where the time went" in record.getMessage()]
    assert first.startswith("12 images in ")
    assert "; of the waiting, since no loader processes were asked for: reading " in first
    assert second.startswith("since step 3, where this start went on: 8 images in ")
    assert "; beside that in 2 loader processes: reading " in second
    for told in (first, second):
        assert all(f" {name} " in told for name in ("moving", "augmenting", "forward", "loss", "backward", "update"))
        assert "measuring" not in told
    assert {name for line in lines for name in line if name.startswith("seconds_")} == {
        *(f"seconds_{name}" for name in TRAINING),
        *(f"seconds_loader_{name}" for name in LOADING),
    }
