"""`patchssl pretrain --init` as a user meets it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from patchssl.backbones import load_backbone
from patchssl.cli.main import main

VIEWS = {"views.global_size": 16, "views.local_size": 8, "views.num_local": 1}
HEADS = {"model.head_hidden": 16, "model.head_bottleneck": 8, "model.cls_prototypes": 12, "model.patch_prototypes": 8}
VIT = {"model.patch_size": 8, "model.width": 16, "model.depth": 1, "model.num_heads": 2}
# As the training checkpoint of DINO in the golden files is.
DINO = {"model.patch_size": 8, "model.width": 48, "model.depth": 2, "model.num_heads": 3}
DINO_HEADS = {"model.head_hidden": 32, "model.head_bottleneck": 16, "model.cls_prototypes": 96}
TRAIN = {"train.batch_size": 4, "train.steps": 2, "log.every_steps": 1, "train.checkpoint_every_steps": 1}
# A learning rate of 0 is not allowed; at this one two steps leave the weights as they are, to rounding.
STILL = {"train.learning_rate": 1e-12, "train.final_learning_rate": 1e-12}


def settings(*parts: dict[str, Any]) -> list[str]:
    merged = {"model.arch": "vit_tiny_patch16_224"} | {name: value for part in parts for name, value in part.items()}
    return [text for name, value in merged.items() for text in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        Image.new("RGB", (20, 24), (30 * number, 200 - 20 * number, 90)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def first(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    run = tmp_path_factory.mktemp("runs") / "first: a run @home"
    assert pretrain(images, run, settings(VIEWS, VIT, HEADS, TRAIN)) == 0
    return run


def pretrain(images: Path, run: Path, more: list[str]) -> int:
    return main(["pretrain", str(images), "--output", str(run), "--workers", "0", "--precision", "fp32", *more])


def features(spec: str | Path, size: int) -> torch.Tensor:
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return load_backbone(str(spec)).forward(pixels).patches


def test_a_run_from_a_run_with_its_heads(images: Path, first: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = [*settings(STILL), "--config", str(first / "config.yaml"), "--init", str(first), "--init-heads"]
    assert pretrain(images, run, more) == 0
    log = (run / "log.txt").read_text()
    assert f"init {first} (patchssl vit_tiny_patch16_224, teacher): all 18 weights of the backbone" in log
    assert "projection heads: head for cls loaded, head for patch loaded, centre of cls loaded" in log
    model = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert (model["init"], model["init_heads"]) == (str(first), True)
    kept = json.loads((run / "init.json").read_text())
    assert kept["weights_sha256"] == load_backbone(str(first)).weights_sha256
    torch.testing.assert_close(features(run, 16), features(first, 16), rtol=0, atol=1e-5)
    ends = [torch.load(folder / "checkpoints" / "latest") for folder in (first, run)]
    for name in ("cls_head.mlp.0.weight", "patch_head.last_layer.weight_v"):
        torch.testing.assert_close(ends[1]["teacher"][name], ends[0]["teacher"][name], rtol=0, atol=1e-5)


def test_resuming_does_not_need_the_model_any_more(images: Path, first: Path, tmp_path: Path) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(first, source)
    assert pretrain(images, run, [*settings(VIEWS, VIT, HEADS, TRAIN), "--init", str(source)]) == 0
    kept = (run / "init.json").read_bytes()
    shutil.rmtree(source)
    assert pretrain(images, run, ["--resume", "--set", "train.steps=3"]) == 0
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]
    assert (run / "init.json").read_bytes() == kept
    log = (run / "log.txt").read_text()
    assert log.count("weights of the backbone") == 1
    assert "projection heads start fresh" in log
    # Started again from nothing, the folder says nothing of a model.
    assert pretrain(images, run, [*settings(VIEWS, VIT, HEADS, TRAIN), "--overwrite"]) == 0
    assert not (run / "init.json").exists()


@pytest.mark.parametrize("size", [64, 32])
def test_a_run_from_dinos_training_checkpoint(images: Path, repository: Path, tmp_path: Path, size: int) -> None:
    checkpoint = repository / "tests" / "golden" / "dino_training_checkpoint.pth"
    run = tmp_path / "run"
    views = {"views.global_size": size, "views.local_size": 16, "views.num_local": 1}
    chosen = settings(views, DINO, DINO_HEADS, {"model.patch_prototypes": 8}, TRAIN, STILL)
    assert pretrain(images, run, [*chosen, "--init", str(checkpoint), "--init-heads"]) == 0
    log = (run / "log.txt").read_text()
    assert "head for cls loaded, head for patch fresh, since init has none for patches, centre of cls loaded" in log
    assert ("position embedding resampled from 8x8 to 4x4 (dino)" in log) == (size == 32)
    torch.testing.assert_close(features(run, size), features(checkpoint, size), rtol=0, atol=1e-5)


def test_a_model_for_other_colours_is_warned_of(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    chosen = settings({"model.arch": "test_vit", "model.patch_size": 16, "views.global_size": 16}, HEADS, TRAIN)
    assert pretrain(images, run, [*chosen, "--set", "views.local_size=16", "--init", "timm:test_vit@random"]) == 0
    assert "this run, and its evaluation, normalise by ImageNet's" in (run / "log.txt").read_text()


@pytest.mark.parametrize(
    ("spec", "changes", "words"),
    [
        ("FIRST", {"model.width": 32}, "width 16 there, 32 here; set model.width=16, or take its configuration"),
        ("FIRST", {"model.pooling": "mean"}, "class token yes there, no here; set model.pooling=cls"),
        (
            "FIRST",
            {"model.cls_prototypes": 20, "model.init_heads": "true"},
            "cls_prototypes 12 there, 20 here; set model.cls_prototypes=12, or let them start fresh",
        ),
        ("timm:resnet18", {}, "is a network of type ResNet; pretraining goes on from ViTs"),
        ("torchvision:resnet18", {}, "is a model of torchvision; pretraining goes on from ViTs"),
        ("floor:raw-pixels", {}, "is a model of floor; pretraining goes on from ViTs"),
        ("null", {}, "there is no folder or file 'null'"),
        ("a: {b", {}, "there is no folder or file 'a: {b'"),
        ("12", {}, "there is no folder or file '12'"),
        (None, {"model.init_heads": "true"}, "init_heads is true and init names no model to take heads from"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_before_there_is_a_folder(
    images: Path,
    first: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spec: str | None,
    changes: dict[str, Any],
    words: str,
) -> None:
    named = [] if spec is None else ["--init", spec.replace("FIRST", str(first))]
    assert pretrain(images, tmp_path / "run", [*settings(VIEWS, VIT, HEADS, TRAIN, changes), *named]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [["--init", "runs/a"], ["--init-heads"], ["--no-init-heads"]])
def test_init_is_for_the_start_of_a_run(
    images: Path, first: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert pretrain(images, first, ["--resume", *option]) == 2
    assert "--init is for the start of a run; --resume goes on from its checkpoint" in capsys.readouterr().err
