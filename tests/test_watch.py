"""What a run says about itself: its measures, and collapses that are provoked by training."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchssl.config import Config
from patchssl.data.sources import open_unlabelled
from patchssl.data.synth.classes import class_images, draw_class_image
from patchssl.derived import derive
from patchssl.measures import effective_rank, perplexity
from patchssl.metrics_line import measured
from patchssl.monitor import read_metrics
from patchssl.network import MAX_FEATURES, Network, Projected
from patchssl.pretrain import pretrain
from patchssl.recipes import parse_config
from patchssl.run_folder import prepare_run
from patchssl.structs import Projections
from patchssl.student_teacher import StudentTeacher
from patchssl.targets import Targets
from patchssl.workspace import Workspace

# The recipes for small images, smaller still.
BASE: dict[str, dict[str, Any]] = {
    "views": {
        "global_size": 32,
        "local_size": 16,
        "num_local": 2,
        "global_scale": [0.5, 1.0],
        "local_scale": [0.15, 0.5],
    },
    "photometric": {"hue": 0.0, "greyscale_probability": 1.0, "blur_probability": 0.0, "solarise_probability": 0.0},
    "model": {
        "arch": "vit_tiny_patch16_224",
        "patch_size": 8,
        "width": 48,
        "depth": 2,
        "num_heads": 3,
        "pooling": "mean",
        "drop_path": 0.0,
        "head_hidden": 64,
        "head_bottleneck": 32,
        "cls_prototypes": 128,
        "patch_prototypes": 128,
    },
    "loss": {"center": "sinkhorn", "teacher_temperature": 0.02},
    "train": {"steps": 80, "batch_size": 12, "learning_rate": 3e-3, "ema_momentum": 0.95, "warmup_fraction": 0.1},
    "log": {"every_steps": 5},
}


def config(**changes: dict[str, Any]) -> Config:
    return parse_config({name: values | changes.get(name, {}) for name, values in BASE.items()})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    for number, image in enumerate(class_images(96)):
        Image.fromarray(draw_class_image(image, 48, 0)).save(folder / f"{number}.png")
    return folder


def train(settings: Config, images: Path, run: Path, *, resume: bool = False, stop_after: int | None = None) -> None:
    """As the command line does."""
    prepare_run(run, settings, device="cpu", resume=resume, overwrite=False)
    source = open_unlabelled(images)
    settings = derive(settings, len(source)).config
    left = iter(range(stop_after or 10**9, 0, -1))
    with torch.random.fork_rng():
        torch.manual_seed(settings.train.seed)
        pretrain(
            StudentTeacher(settings),
            source,
            run,
            device="cpu",
            precision="fp32",
            workers=0,
            resume=resume,
            stop_requested=lambda: next(left) == 1,
        )


Warned = Callable[..., list[str]]


@pytest.fixture
def warned(drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Warned:
    """Train with changes to the base; gives the warnings."""

    def run(**changes: dict[str, Any]) -> list[str]:
        with caplog.at_level(logging.WARNING, logger="patchssl"):
            train(config(**changes), drawn, tmp_path / "run")
        return [record.getMessage() for record in caplog.records if record.name == "patchssl.watch"]

    return run


def starts(found: Sequence[str], *words: str) -> bool:
    """Whether there is a warning for each of these beginnings, in any order, and none besides."""
    return len(found) == len(words) and all(any(line.startswith(start) for line in found) for start in words)


def test_a_healthy_run_is_not_warned_of(warned: Warned, tmp_path: Path) -> None:
    assert warned() == []
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    # It learns, or it would be no measure for those below.
    means = {name: np.mean([line[name] for line in lines[-6:]]) for name in lines[-1]}
    assert means["below_uniform_patch"] > 0.01
    assert means["prototypes_used_patch"] > 30
    assert means["rank_patch"] > 10


def test_a_teacher_temperature_that_is_too_high_is_named(warned: Warned) -> None:
    found = warned(loss={"teacher_temperature": 1.0, "teacher_temperature_start": 1.0})
    assert starts(found, "means of patches: the loss sits at ln K, 4.85", "patches: the loss sits at ln K, 4.85")
    for words in found:
        assert "with ln 128 = 4.8520, and so does the teacher's entropy, 4.85" in words
        assert "Try loss.teacher_temperature 0.02 to 0.07 (it is 1, which leaves no differences" in words


def test_a_learning_rate_that_is_too_high_is_named(warned: Warned) -> None:
    found = warned(train={"learning_rate": 1.0})
    ranks = [words for words in found if "the effective rank of the teacher's features is 1." in words]
    assert starts(ranks, "means of patches: ", "patches: ")
    for words in ranks:
        assert "Try a lower train.learning_rate (it is 1; null lets it follow from batch size and width)" in words


def test_a_loss_that_stays_above_uniform_is_named(warned: Warned) -> None:
    found = warned(
        loss={"student_temperature": 0.01}, train={"learning_rate": 1.0, "final_learning_rate": 1.0, "steps": 110}
    )
    above = [words for words in found if "above ln K (ln 128 = 4.8520): the student does worse" in words]
    assert above
    for words in above:
        assert "Try a lower train.learning_rate (it is 1;" in words
        assert "loss.student_temperature 0.1 (it is 0.01)" in words


SHORT: dict[str, dict[str, Any]] = {"train": {"steps": 4, "batch_size": 4}, "log": {"every_steps": 1}}


@pytest.mark.parametrize("patch_weight", [1.0, 0.0])
def test_a_line_has_every_measure(drawn: Path, tmp_path: Path, patch_weight: float) -> None:
    train(config(**SHORT, loss={"patch_weight": patch_weight}), drawn, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    of_kind = ["teacher_entropy", "kl", "below_uniform", "prototypes_used", "prototypes_perplexity"]
    kinds = ["cls", "patch"] if patch_weight else ["cls"]
    wanted = {f"{name}_{kind}" for name in of_kind for kind in kinds} | {"rank_cls", "rank_patch", "gradient_norm"}
    wanted |= {"images_per_s", "data_wait_fraction"}
    assert len(lines) == 4
    for line in lines:
        assert wanted <= set(line)
        assert ("kl_patch" in line) == bool(patch_weight)
        for kind in kinds:
            assert line[f"below_uniform_{kind}"] == pytest.approx(math.log(128) - line[f"loss_{kind}"])
            assert 0 <= line[f"kl_{kind}"] <= line[f"loss_{kind}"]
            assert 1 <= line[f"prototypes_perplexity_{kind}"] <= 128.01
        # Every class token learns and is learned from as often as any other.
        assert line["kl_cls"] == pytest.approx(line["loss_cls"] - line["teacher_entropy_cls"], abs=1e-4)
        assert 1 <= line["prototypes_used_cls"] <= 8
        assert 1 <= line["rank_cls"] <= 8
        assert 1 <= line["rank_patch"] <= 48


def test_a_divergence_is_that_of_the_pairs(drawn: Path, tmp_path: Path) -> None:
    # A student that is the teacher, of views that are all the same, at the same temperature and without a centre:
    # it disagrees about nothing, whatever each patch's entropy and however often it is a partner.
    same = {"global_size": 32, "local_size": 32, "global_scale": [1.0, 1.0], "local_scale": [1.0, 1.0]}
    views = same | {"ratio": [1.0, 1.0], "flip_probability": 0.0}
    photometric = {"greyscale_probability": 0.0, "jitter_probability": 0.0}
    loss = {"center": "kind", "student_temperature": 0.1, "teacher_temperature": 0.1, "teacher_temperature_start": 0.1}
    settings = config(
        views=views, photometric=photometric, loss=loss, train=SHORT["train"] | {"steps": 1}, log=SHORT["log"]
    )
    train(settings, drawn, tmp_path / "run")
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert line["kl_cls"] == pytest.approx(0, abs=1e-4)
    assert line["kl_patch"] == pytest.approx(0, abs=1e-4)
    assert line["teacher_entropy_patch"] > 0.1


def answer(features: torch.Tensor, rows: torch.Tensor) -> Projected:
    return Projected(features, features, Projections(rows, torch.eye(rows.shape[1])), None)


def test_measures_of_a_step_by_hand() -> None:
    # Sure of the first prototype, of the second, and uniform over four.
    rows = torch.tensor([[500.0, 0, 0, 0], [0, 500.0, 0, 0], [0, 0, 0, 0]])
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    targets = Targets.of(Projections(rows, torch.eye(4)), center=torch.zeros(1, 4), temperature=1.0)
    sums = {"cls": targets.sums(torch.tensor([0.5, 0.25, 0.25]), Workspace())}
    found = measured({"cls": 1.0, "patch": 0.0}, sums, answer(features, rows))
    assert found == pytest.approx(
        {
            "teacher_entropy_cls": math.log(4) / 3,
            "kl_cls": 1.0 - math.log(4) / 4,
            "below_uniform_cls": math.log(4) - 1.0,
            "prototypes_used_cls": 2,
            "prototypes_perplexity_cls": perplexity(torch.tensor([1.25, 1.25, 0.25, 0.25])),
            "rank_cls": effective_rank(features),
            "rank_patch": effective_rank(features),
        }
    )


def test_what_cannot_be_measured_is_left_out() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    targets = Targets.of(Projections(rows, torch.eye(2)), center=torch.zeros(1, 2), temperature=1.0)
    sums = {"cls": targets.sums(torch.zeros(2), Workspace())}
    found = measured({"cls": 0.0}, sums, answer(torch.tensor([[math.nan, 1.0]]), rows))
    assert set(found) == {"teacher_entropy_cls", "prototypes_used_cls", "prototypes_perplexity_cls"}
    lost = measured({"cls": math.nan}, {"cls": targets.sums(torch.ones(2), Workspace())}, answer(torch.eye(2), rows))
    assert {"kl_cls", "below_uniform_cls"}.isdisjoint(lost)
    assert all(math.isfinite(value) for value in lost.values())


def test_a_network_hands_on_a_few_patches_and_keeps_none_of_the_others_alive() -> None:
    network = Network(config(), drop_path=0.0)
    pixels = [torch.randn(40, 3, 32, 32), torch.randn(4, 3, 16, 16)]  # 640 patches in the first group
    answered = Projected.of(network(pixels))
    assert answered.patch_features.shape == (MAX_FEATURES, 48)
    assert not answered.patch_features.requires_grad
    assert answered.patch_features.untyped_storage().nbytes() == MAX_FEATURES * 48 * 4
    tokens = network.backbone.forward_features(pixels[0]).flatten(0, 1)
    distances = torch.cdist(answered.patch_features, tokens, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.amin(1).max() == 0
    assert len(distances.argmin(1).unique()) == MAX_FEATURES
    few = Projected.of(network([pixels[0][:2]]))
    torch.testing.assert_close(few.patch_features, network.backbone.forward_features(pixels[0][:2]).flatten(0, 1))


def test_lines_are_read_again_by_step_the_last_counting(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    lines = [{"step": 0, "loss": 1.0}, {"step": 10, "loss": 2.0}, {"step": 20, "loss": 3.0}, {"step": 10, "loss": 4.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 20, "lo')
    assert read_metrics(path) == [lines[0], lines[3], lines[2]]
    path.write_text("")
    assert read_metrics(path) == []


def test_a_missing_centre_is_named_and_again_after_a_resume(
    drawn: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(loss={"center": "kind", "center_momentum": 1.0}, train={"steps": 90, "learning_rate": 0.01})

    def warnings() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name == "patchssl.watch"]
        caplog.clear()
        return [words for words in found if ": the teacher gives everything the same prototype: 1 of 128 in" in words]

    with caplog.at_level(logging.WARNING, logger="patchssl"):
        train(settings, drawn, tmp_path / "run", stop_after=80)
        found = warnings()
        # Ten more steps are too few by themselves: it goes on with what the lines before say.
        train(settings, drawn, tmp_path / "run", resume=True)
        again = warnings()
    for said in (found, again):
        assert "patches: " in {words[:9] for words in said}
        assert all("Try loss.center_momentum 0.9 (it is 1, with which the centre hardly mov" in words for words in said)
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [*range(0, 90, 5), 89]
