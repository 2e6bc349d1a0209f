"""Numbers that explode: steps are skipped, counted and logged, and too many stop a run with words that help."""

import json
import logging
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchssl.checkpoint import write_checkpoint
from patchssl.config import Config
from patchssl.data.sources import open_unlabelled
from patchssl.derived import derive
from patchssl.errors import TrainingError
from patchssl.explosions import Circumstances, Findings, all_finite, cause, changes, circumstances_told, examine, way_on
from patchssl.initial import initialise
from patchssl.monitor import MetricsFile
from patchssl.pretrain import pretrain
from patchssl.recipes import parse_config
from patchssl.run_folder import prepare_run
from patchssl.skipped_steps import SkippedSteps, what_is_not_finite
from patchssl.step_values import StepValues, scheduled
from patchssl.structs import Boxes, SampleKeys, ViewGroup
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import LossTerms, Trainer

TINY: dict[str, Any] = {
    "views": {"global_size": 16, "local_size": 8, "num_local": 2},
    "model": {
        "arch": "vit_tiny_patch16_224",
        "patch_size": 8,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "head_hidden": 16,
        "head_bottleneck": 8,
        "cls_prototypes": 12,
        "patch_prototypes": 8,
    },
    "train": {"steps": 8, "batch_size": 4, "learning_rate": 0.01, "warmup_fraction": 0, "max_skipped_steps": 3},
    "log": {"every_steps": 1},
}
NAN, INF = math.nan, math.inf


def tiny(**train: Any) -> Config:
    return parse_config({**TINY, "train": {**TINY["train"], **train}})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(10):
        pixels = generator.integers(256, size=(20 + number, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run(config: Config, images: Path, output: Path, *, resume: bool = False, **options: Any) -> list[dict[str, Any]]:
    """Train; returns what is in metrics.jsonl, the last line of a step counting."""
    prepare_run(output, config, device="cpu", resume=resume, overwrite=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = open_unlabelled(images)
        networks = StudentTeacher(derive(config, len(source)).config)
        if config.model.init is not None and not resume:
            initialise(networks, seed=0)
        settings: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 0} | options
        pretrain(networks, source, output, resume=resume, **settings)
    return lines(output)


def lines(output: Path) -> list[dict[str, Any]]:
    def never(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found = [json.loads(text, parse_constant=never) for text in (output / "metrics.jsonl").read_text().splitlines()]
    return list({line["step"]: line for line in found}.values())


def names(output: Path) -> list[str]:
    """Of all checkpoints but the one of before the first step."""
    found = sorted(path.name for path in (output / "checkpoints").glob("step-*.pt"))
    return [name for name in found if name != "step-00000000.pt"]


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], spoiled: Callable[[StepValues], StepValues]) -> None:
    """Change the scheduled values of some steps."""

    def of_step(config: Config, step: int, num_steps: int) -> StepValues:
        values = scheduled(config, step, num_steps)
        return spoiled(values) if step in steps else values

    monkeypatch.setattr("patchssl.pretrain.scheduled", of_step)


def overflow(values: StepValues) -> StepValues:
    """The loss stays finite, some 1e36; squares of its gradient do not."""
    return replace(values, patch_weight=1e36)


def test_counting_by_hand() -> None:
    counts, found = SkippedSteps(), []
    for is_finite in (True, False, False, True, False):
        counts = counts.after(is_finite=is_finite)
        found.append((counts.total, counts.in_a_row))
    assert found == [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1)]


@pytest.mark.parametrize(
    ("terms", "loss", "norm", "told"),
    [
        ({"loss_cls": NAN, "loss_patch": 1.0, "loss_koleo": -INF}, NAN, NAN, "loss_cls is nan, loss_koleo is -inf"),
        ({"loss_cls": 3e38, "loss_patch": 3e38}, INF, NAN, "loss is inf"),
        ({"loss_cls": 1.0}, 1.0, INF, "the norm of the gradient is inf"),
        ({"loss_cls": 1.0}, 1.0, 1.0, "what another process computed is not finite"),
    ],
)
def test_what_is_not_finite_is_named(terms: dict[str, float], loss: float, norm: float, told: str) -> None:
    assert what_is_not_finite(terms, loss, norm) == told


def test_what_json_has_no_word_for_becomes_null(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write({"step": 3, "loss": NAN, "gradient_norm": -INF, "lr": 0.5})
    file.close()
    assert lines(tmp_path) == [{"step": 3, "loss": None, "gradient_norm": None, "lr": 0.5}]


def test_a_gradient_that_overflows_in_one_batch_skips_that_step_alone(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, {3}, overflow)
    with caplog.at_level(logging.WARNING):
        found = run(tiny(), images, tmp_path / "run")
    assert [line["skipped_steps"] for line in found] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert [line["step"] for line in found if line["gradient_norm"] is None] == [3]
    assert all(math.isfinite(line["loss"]) for line in found)
    assert found[3]["loss"] > 1e30
    assert [record.getMessage() for record in caplog.records] == [
        "step 3 is skipped: the norm of the gradient is inf; 1 in a row, 1 in all"
    ]


def test_a_skipped_step_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = derive(tiny(), 10).config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trainer = Trainer(StudentTeacher(config), device="cpu", precision="fp32")
    keys = SampleKeys(torch.zeros(4, dtype=torch.int64), torch.arange(4))
    generator = torch.Generator().manual_seed(0)
    decoded = [
        ViewGroup(
            torch.randint(256, (4, 2, 3, side, side), dtype=torch.uint8, generator=generator),
            Boxes(torch.tensor([0.0, 0, 20, 20]).double().expand(4, 2, 4), torch.zeros(4, 2, dtype=torch.bool)),
        )
        for side in (16, 8)
    ]
    values = scheduled(config, 5, 8)
    assert trainer.step(decoded, keys, values).is_finite
    before = json.dumps(told(trainer.state()))
    assert not trainer.step(decoded, keys, overflow(values)).is_finite
    with monkeypatch.context() as patch:
        patch.setattr("patchssl.trainer.LossTerms.of", lambda *parts: spoiled_terms(*parts))
        assert not trainer.step(decoded, keys, values).is_finite
    assert json.dumps(told(trainer.state())) == before
    assert all(parameter.grad is None for parameter in trainer.networks.student.parameters())
    assert trainer.step(decoded, keys, values).is_finite
    assert json.dumps(told(trainer.state())) != before


_of = LossTerms.of


def spoiled_terms(*parts: Any) -> LossTerms:
    """The loss of a batch as if its patch term were nan."""
    terms = _of(*parts)
    return replace(terms, patch=terms.patch * NAN, total=terms.total * NAN)


def told(value: Any) -> Any:
    """Everything of a state as numbers that compare exactly."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(name): told(part) for name, part in value.items()}
    return [told(part) for part in value] if isinstance(value, list | tuple) else value


def test_a_loss_that_is_nan_once_is_skipped_and_its_line_has_null(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def of(*parts: Any) -> LossTerms:
        calls.append(len(calls))
        return spoiled_terms(*parts) if len(calls) == 3 else _of(*parts)

    monkeypatch.setattr("patchssl.trainer.LossTerms.of", of)
    with caplog.at_level(logging.WARNING):
        found = run(tiny(), images, tmp_path / "run")
    assert [line["step"] for line in found] == list(range(8))
    bad = found[2]
    assert (bad["loss"], bad["loss_patch"], bad["skipped_steps"]) == (None, None, 1)
    assert math.isfinite(bad["loss_cls"])
    assert "step 2 is skipped: loss_patch is nan; 1 in a row, 1 in all" in caplog.text


def test_counts_survive_a_resume_and_no_checkpoint_is_written_meanwhile(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {1, 3, 4, 6}, overflow)
    config = tiny(checkpoint_every_steps=1, keep_last=20)
    whole = run(config, images, tmp_path / "whole")
    assert [line["skipped_steps"] for line in whole] == [0, 1, 1, 2, 3, 3, 4, 4]
    assert names(tmp_path / "whole") == [f"step-{step:08d}.pt" for step in (1, 3, 6, 8)]
    for stop in (2, 4, 5):
        output = tmp_path / f"parts{stop}"
        left = iter(range(stop - 1, -1, -1))
        run(config, images, output, stop_requested=lambda left=left: next(left) == 0)
        # A stop saves, in the middle of a series as well.
        stopped = torch.load(output / "checkpoints" / f"step-{stop:08d}.pt")
        assert stopped["skipped_steps"] == {"total": {2: 1, 4: 2, 5: 3}[stop], "in_a_row": {2: 1, 4: 1, 5: 2}[stop]}
        after = run(config, images, output, resume=True)
        for name in ("loss", "gradient_norm", "skipped_steps"):
            assert [line[name] for line in after] == [line[name] for line in whole]


def test_a_series_goes_on_after_a_resume(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {3, 4, 5}, overflow)
    left = iter(range(4, -1, -1))
    run(tiny(), images, tmp_path / "run", stop_requested=lambda: next(left) == 0)
    with pytest.raises(TrainingError, match=r"skipped 3 steps in a row, with train.max_skipped_steps at 3; in step 5"):
        run(tiny(), images, tmp_path / "run", resume=True)
    # The line of the step that ended it stands there, too.
    assert [line["skipped_steps"] for line in lines(tmp_path / "run")] == [0, 0, 0, 1, 2, 3]


def test_a_last_step_that_is_skipped_ends_a_run_as_any_other(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {6, 7}, overflow)
    assert run(tiny(), images, tmp_path / "run")[-1]["skipped_steps"] == 2
    assert names(tmp_path / "run") == ["step-00000008.pt"]


def test_an_absurd_learning_rate_is_told(images: Path, tmp_path: Path) -> None:
    config = tiny(learning_rate=1e30, clip_gradient=None, checkpoint_every_steps=2)
    with pytest.raises(TrainingError) as raised:
        run(config, images, tmp_path / "run", precision="bf16")
    told = str(raised.value)
    assert "\n" not in told
    assert re.match(r"skipped 3 steps in a row, with train.max_skipped_steps at 3; in step 3 loss_cls is nan", told)
    assert "weights, centres and pixels are finite, the networks overflow in bf16; the largest weight" in told
    assert "train.learning_rate is 1e+30, where null would give 0.003, train.clip_gradient is null, prec" in told
    assert told.endswith(
        "no trained weights were saved before step 1; start anew with --overwrite --set train.learning_rate=0.003 "
        "--set train.clip_gradient=3 --precision fp32"
    )


def test_weights_at_infinity_are_found_and_the_way_on_leads_on(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    left = iter(range(3, -1, -1))
    config = tiny(checkpoint_every_steps=1)
    run(config, images, output, stop_requested=lambda: next(left) == 0)
    path = output / "checkpoints" / "step-00000004.pt"
    content = torch.load(path)
    content["student"]["backbone.cls_token"].fill_(INF)
    write_checkpoint(path, content, step=4)
    with pytest.raises(TrainingError) as raised:
        run(config, images, output, resume=True)
    told = str(raised.value)
    assert "in step 6 loss_cls is nan, loss_patch is nan: the student's weights are not finite (1 of " in told
    assert "tensors, first backbone.cls_token), so that an update was too large" in told
    found = re.search(r"last good checkpoint is step-00000003.pt: begin a new run with its weights by (.*)$", told)
    assert found is not None
    assert names(output) == [f"step-{step:08d}.pt" for step in (2, 3, 4)]
    # What it says works.
    option, init, heads, change, setting = shlex.split(found[1])
    assert (option, heads, change, setting) == ("--init", "--init-heads", "--set", "train.learning_rate=0.003")
    config = tiny(learning_rate=0.003)
    model = config.model.model_copy(update={"init": init, "init_heads": True})
    after = run(config.model_copy(update={"model": model}), images, tmp_path / "after")
    assert [line["skipped_steps"] for line in after] == [0] * 8


def test_weights_that_the_last_step_ruins_are_no_result(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ruined(values: StepValues) -> StepValues:
        return replace(values, learning_rate=INF)

    spoil(monkeypatch, {5}, ruined)
    with pytest.raises(TrainingError, match=r"the run ends after step 5 with weights that are not fini.*00004.pt: "):
        run(tiny(steps=6, checkpoint_every_steps=2), images, tmp_path / "run")
    # Nor is a checkpoint written of them on the way.
    words = r"in step 8 .*; the last good checkpoint is step-00000004\.pt: beg"
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingError, match=words):
        run(tiny(steps=12, checkpoint_every_steps=2), images, tmp_path / "longer")
    assert names(tmp_path / "longer") == ["step-00000002.pt", "step-00000004.pt"]
    assert "no checkpoint is saved: the last update left weights that are not finite" in caplog.text


FINITE = Findings("", "", "", "", loss_is_finite=True, largest_weight=2.5)
AROUND = Circumstances(learning_rate=0.01, derived_rate=0.002, clip_gradient=3.0, precision="fp32")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"student": "2 of 9 tensors", "centers": "x"}, "the student's weights are not finite (2 of 9 tensors), so"),
        ({"teacher": "2 of 9 tensors", "pixels": "x"}, "the teacher's weights are not finite (2 of 9 tensors), while"),
        ({"centers": "1 of 2 tensors", "pixels": "x"}, "the centres are not finite (1 of 2 tensors), so that"),
        ({"pixels": "1 of 4 views, of a.png"}, "pixels are not finite (1 of 4 views, of a.png): look at these im"),
        ({}, "weights, centres and pixels are finite, the loss is as well, and its gradient overflows in bf16; the"),
        ({"loss_is_finite": False}, "weights, centres and pixels are finite, the networks overflow in bf16; the"),
    ],
)
def test_the_cause_is_what_lies_before_everything_else(found: dict[str, Any], words: str) -> None:
    assert cause(replace(FINITE, **found), "bf16").startswith(words)


@pytest.mark.parametrize(
    ("around", "options"),
    [
        ({}, ["--set train.learning_rate=0.002"]),
        ({"learning_rate": 0.001}, ["--set train.learning_rate=0.0005"]),
        ({"learning_rate": 0.002}, ["--set train.learning_rate=0.001"]),
        ({"clip_gradient": None}, ["--set train.learning_rate=0.002", "--set train.clip_gradient=3"]),
        ({"precision": "bf16"}, ["--set train.learning_rate=0.002", "--precision fp32"]),
    ],
)
def test_what_to_change_by_hand(around: dict[str, Any], options: list[str]) -> None:
    assert changes(FINITE, replace(AROUND, **around)) == options
    # Other settings do not mend pixels.
    assert changes(replace(FINITE, pixels="1 of 4 views, of a.png"), replace(AROUND, **around)) == []
    told = circumstances_told(replace(AROUND, **around))
    assert ("train.clip_gradient is null" in told) == ("clip_gradient" in around)


def test_the_way_on_by_hand(tmp_path: Path) -> None:
    (tmp_path / "step-00000000.pt").touch()
    anew = "no trained weights were saved before step 7; start anew with --overwrite --x"
    assert way_on(tmp_path, 7, ["--x"]) == anew
    for step in (4, 7):
        (tmp_path / f"step-{step:08d}.pt").touch()
    for bad_step, last in ((8, "step-00000007.pt"), (7, "step-00000004.pt")):
        told = f"the last good checkpoint is {last}: begin a new run with its weights by --init {tmp_path}/{last} "
        assert way_on(tmp_path, bad_step, ["--x"]) == f"{told}--init-heads --x"
    assert way_on(tmp_path, 4, ["--x"]).startswith("no trained weights were saved before step 4; start anew")
    # What is wrong with images leaves the weights as they were.
    assert way_on(tmp_path, 7, []) == "the checkpoint step-00000007.pt is kept: go on with --resume"


def test_broken_numbers_are_found_where_they_are() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = StudentTeacher(derive(tiny(), 10).config)
    keys = SampleKeys(torch.zeros(3, dtype=torch.int64), torch.tensor([4, 0, 2]))
    flipped = torch.zeros(3, 2, dtype=torch.bool)
    views = [ViewGroup(torch.zeros(3, 2, 3, side, side), Boxes(torch.zeros(3, 2, 4), flipped)) for side in (16, 8)]
    ids = [f"{number}.png" for number in range(5)]
    found = examine(networks, views, keys, ids, loss_is_finite=True)
    assert (found.student, found.teacher, found.centers, found.pixels) == ("", "", "", "")
    largest = max(float(parameter.detach().abs().max()) for parameter in networks.student.parameters())
    assert found.largest_weight == largest
    views[0].pixels[0, 1, 2, 3, 4], views[1].pixels[2, 0, 0, 0, 0], views[1].pixels[2, 1, 0, 0, 0] = NAN, INF, NAN
    networks.centers["patch"][0, 1] = NAN
    list(networks.teacher.parameters())[1].data[...] = INF
    found = examine(networks, views, keys, ids, loss_is_finite=False)
    assert found.pixels == "3 of 12 views, of 4.png, 2.png"
    assert found.centers == "1 of 2 tensors, first patch"
    assert re.fullmatch(r"1 of \d+ tensors, first backbone.pos_embed", found.teacher)
    assert found.student == ""


def test_finite_of_nothing_and_of_empty_tensors() -> None:
    assert all_finite([])
    assert all_finite([torch.zeros(0), torch.ones(2)])
    assert not all_finite([torch.ones(2), torch.tensor([1.0, NAN])])
