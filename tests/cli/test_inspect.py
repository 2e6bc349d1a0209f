import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from patchssl.cli.main import main


@pytest.fixture
def checkpoint(repository: Path) -> str:
    return str(repository / "tests" / "golden" / "dino_training_checkpoint.pth")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["inspect", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_json_says_everything(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, Any] = json.loads(printed(capsys, checkpoint, "--format", "json", "--quiet"))
    sha256, weights = facts.pop("weights_sha256"), facts.pop("weights")
    assert len(sha256) == 64
    assert facts == {
        "spec": checkpoint,
        "family": "dino",
        "arch": "vit_width48_depth2_patch8",
        "checkpoint_key": "teacher",
        "num_params": 69072,
        "dim": 48,
        "patch_px": 8,
        "blocks": 2,
        "heads": 3,
        "registers": 0,
        "cls": "cls",
        "positions": "dino",
        "preprocess": {
            "image_px": 224,
            "resize_px": 256,
            "resize": "bicubic, shorter side",
            "crop": "centre",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
    }
    assert len(weights["matched"]) == 30
    assert len(weights["dropped"]) == 8
    assert [weights[name] for name in ("missing", "unexpected", "reshaped", "resampled")] == [[], [], [], []]
    student = json.loads(printed(capsys, checkpoint, "--checkpoint-key", "student", "--format", "json"))
    assert student["checkpoint_key"] == "student"
    assert student["weights_sha256"] != sha256


def test_table_csv_and_markdown_hold_the_same(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = [line.split(maxsplit=1) for line in printed(capsys, checkpoint).splitlines()]
    rows = list(csv.reader(io.StringIO(printed(capsys, checkpoint, "--format", "csv"))))
    assert rows[0] == ["fact", "value"]
    assert ["num_params", "69,072"] in rows
    assert ["weights dropped", "8: " + ", ".join(f"head.{name}" for name in (
        "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "mlp.4.weight", "mlp.4.bias",
        "last_layer.weight_g", "last_layer.weight_v",
    ))] in rows  # fmt: skip
    assert [" ".join(row).split() for row in rows[1:]] == [" ".join(line).split() for line in table]
    markdown = printed(capsys, checkpoint, "--format", "markdown").splitlines()
    assert markdown[:2] == ["| fact | value |", "| --- | --- |"]
    assert len(markdown) == len(rows) + 1


def test_fresh_weights_and_other_preprocessing(capsys: pytest.CaptureFixture[str]) -> None:
    spec = "timm:test_resnet@random"
    facts = json.loads(printed(capsys, spec, "--format", "json"))
    assert (facts["weights"], facts["blocks"], facts["heads"], facts["cls"]) == (None, 1, None, "head")
    assert facts["preprocess"]["resize_px"] == 182
    model = json.loads(printed(capsys, spec, "--format", "json", "--preprocess", "model"))["preprocess"]
    assert (model["image_px"], model["resize_px"]) == (160, 168)
    sized = json.loads(printed(capsys, spec, "--format", "json", "--preprocess", "model", "--image-size", "320"))
    assert (sized["preprocess"]["image_px"], sized["preprocess"]["resize_px"]) == (320, 336)
    assert printed(capsys, spec).splitlines()[-1].split() == ["weights", "fresh"]


def test_a_partial_file_is_refused_and_accepted_when_told(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=False)
    del content["teacher"]["backbone.norm.bias"]
    torch.save(content, tmp_path / "cut.pth")
    assert main(["inspect", str(tmp_path / "cut.pth")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "of 30 backbone weights 29 match; 1 missing (norm.bias); " in err
    assert "--allow-partial accepts what fits" in err
    table = printed(capsys, str(tmp_path / "cut.pth"), "--allow-partial")
    lines = dict(line.split("  ", maxsplit=1) for line in table.splitlines())
    assert lines["weights missing"].strip() == "1: norm.bias"
    assert lines["weights partial"].strip() == "yes"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument 'SPEC'"),
        (["timm:test_vit", "--checkpoint-key", "student"], "--checkpoint-key is for weight files; timm:test_vit names"),
        (["torchvision:resnet18@random", "--allow-partial"], "--allow-partial is for weight files"),
        (["timm:test_vit@random", "--num-heads", "3"], "--num-heads is for files that do not tell their architecture"),
        (["x", "--preprocess", "own"], "'own' is not one of 'protocol', 'model'"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pth").write_text("no weights here\n")
    for spec, words in {
        str(tmp_path / "text.pth"): "is text, no weight file",
        str(tmp_path / "gone.pth"): "there is no folder or file",
        "timm:resnet19@random": "the nearest are",
    }.items():
        assert main(["inspect", spec]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert words in err
