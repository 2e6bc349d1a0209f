import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from patchssl.backbones import load_backbone
from patchssl.backbones.protocol import fresh_weights, hash_weights
from patchssl.backbones.runs import find_checkpoint
from patchssl.backbones.vit import build_vit
from patchssl.config import Config
from patchssl.errors import CheckpointError, ConfigError

SETTINGS: dict[str, Any] = {
    "model": {
        "arch": "vit_tiny_patch16_224",
        "patch_size": 8,
        "width": 24,
        "depth": 2,
        "num_heads": 2,
        "crop_fraction": 0.8,
    },
    "views": {"global_size": 32, "local_size": 16},
}


def vit(seed: int) -> nn.Module:
    with fresh_weights(seed):
        return build_vit(Config.model_validate(SETTINGS).model, 32)


def checkpoint() -> dict[str, Any]:
    heads = {"cls_head.mlp.0.weight": torch.zeros(2), "patch_head.mlp.0.weight": torch.zeros(2)}
    states = {
        key: {**{f"backbone.{name}": value for name, value in vit(seed).state_dict().items()}, **heads}
        for key, seed in (("student", 1), ("teacher", 2))
    }
    config = Config.model_validate(SETTINGS).model_dump(mode="json")
    return {"format": 1, "kind": "patchssl-pretrain", "step": 3, "config": config, **states}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint(), folder / "checkpoints" / "step-00000003.pt")
    shutil.copy(folder / "checkpoints" / "step-00000003.pt", folder / "checkpoints" / "latest")
    return folder


def test_folder_and_file_give_the_teacher_unless_asked(run: Path) -> None:
    backbone = load_backbone(str(run))
    assert backbone.weights_sha256 == hash_weights(vit(2).state_dict())
    assert load_backbone(str(run / "checkpoints" / "step-00000003.pt")).weights_sha256 == backbone.weights_sha256
    student = load_backbone(str(run), checkpoint_key="student")
    assert student.weights_sha256 == hash_weights(vit(1).state_dict())
    assert (backbone.checkpoint_key, student.checkpoint_key) == ("teacher", "student")
    assert (backbone.family, backbone.arch, backbone.dim, backbone.patch_px) == (
        "patchssl",
        "vit_tiny_patch16_224",
        24,
        8,
    )
    assert (backbone.preprocess.image_px, backbone.preprocess.resize_px) == (32, 40)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(backbone.forward(pixels).cls, vit(2).eval().forward_features(pixels)[:, 0])  # type: ignore[operator]


def test_random_is_the_same_architecture_with_fresh_weights(run: Path) -> None:
    trained, fresh = load_backbone(str(run)), load_backbone(f"{run}@random", seed=5)
    assert fresh.weights_sha256 == hash_weights(vit(5).state_dict())
    assert fresh.num_params == trained.num_params
    assert fresh.preprocess == trained.preprocess
    assert fresh.checkpoint_key is None


def test_without_latest_the_newest_step_counts(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run / "checkpoints"
    (folder / "latest").unlink()
    (folder / "latest").symlink_to("step-gone.pt")
    content = checkpoint()
    content["teacher"] = content["student"]
    torch.save(content, folder / "step-10.pt")
    with caplog.at_level(logging.WARNING):
        assert load_backbone(str(run)).weights_sha256 == hash_weights(vit(1).state_dict())
    assert "taking step-10.pt" in caplog.text


def test_a_checkpoint_moved_aside_as_damaged_is_not_taken(run: Path) -> None:
    folder = run / "checkpoints"
    torch.save({"teacher": {}}, folder / "step-99.pt.damaged")
    (folder / "latest").unlink()
    assert find_checkpoint(run).name == "step-00000003.pt"


def test_an_empty_run_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: neither checkpoints/latest nor"):
        load_backbone(str(tmp_path))


def test_weights_that_do_not_fit_are_counted_and_named(tmp_path: Path) -> None:
    content, path = checkpoint(), tmp_path / "c.pt"
    del content["teacher"]["backbone.norm.weight"]
    content["teacher"]["backbone.extra"] = torch.zeros(1)
    content["teacher"]["backbone.cls_token"] = torch.zeros(1, 1, 25)
    torch.save(content, path)
    words = (
        r"1 missing \(norm.weight\); 1 unexpected \(extra\); "
        r"1 of another shape \(cls_token: 1x1x25 in the file, 1x1x24 here\)"
    )
    with pytest.raises(CheckpointError, match=words):
        load_backbone(str(path))
    partial = load_backbone(str(path), allow_partial=True)
    assert partial.facts()["load"]["partial"]
    student = load_backbone(str(path), checkpoint_key="student")
    assert student.load is not None
    assert (student.load.missing, student.load.unexpected, student.load.partial) == ((), (), False)
    assert student.load.dropped == ("cls_head.mlp.0.weight", "patch_head.mlp.0.weight")
    assert load_backbone(f"{path}@random").dim == 24


def changed(**changes: Any) -> dict[str, Any]:
    return {**checkpoint(), **changes}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed(kind="other"), "is a ViT of width 24, and no weight tells how many heads"),
        ({"model": {}}, "holds no weights; it holds: model"),
        ([1, 2], "holds a list, no weights by name"),
        (changed(format=3), "has format 3; this version reads formats 1 and 2"),
        (changed(teacher=None), "is incomplete: it lacks teacher"),
        (changed(config={}), "configuration that cannot be used"),
        (changed(config={"model": {"arch": 3}, "views": {"global_size": 32}}), "configuration that cannot be used"),
    ],
)
def test_other_contents_are_told(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=words):
        load_backbone(str(path))


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_damaged_files_are_told(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save(checkpoint(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(CheckpointError, match=r"is cut, damaged or no weight file|is empty"):
        load_backbone(str(path))


class Harm:
    """Would run code if it were unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("harm",))


def test_no_code_of_a_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.pt"
    torch.save({"kind": "patchssl-pretrain", "harm": Harm()}, path)
    with pytest.raises(CheckpointError, match="reading it would call print, so it is refused"):
        load_backbone(str(path))
    assert capsys.readouterr().out == ""


def test_of_a_folder_only_runs_are_read(run: Path) -> None:
    torch.save({"model": {}}, run / "checkpoints" / "latest")
    with pytest.raises(CheckpointError, match="is no checkpoint of patchssl; it holds: model"):
        load_backbone(str(run))
    with pytest.raises(CheckpointError, match="is no checkpoint of patchssl"):
        load_backbone(f"{run / 'checkpoints' / 'latest'}@random")


def test_runs_keep_their_geometry_and_refuse_what_changes_nothing(run: Path) -> None:
    backbone = load_backbone(str(run))
    assert backbone.with_protocol_geometry() is backbone
    assert (backbone.num_heads, backbone.num_registers, backbone.positions) == (2, 0, "timm")
    wrong: dict[str, Any]
    for wrong in ({"arch": "vit_tiny"}, {"num_heads": 3}):
        with pytest.raises(ConfigError, match=r"changes nothing about .* the run's configuration tells"):
            load_backbone(str(run), **wrong)
    for wrong in ({"checkpoint_key": "student"}, {"allow_partial": True}):
        with pytest.raises(ConfigError, match=r"changes nothing about .*@random: its weights are fresh"):
            load_backbone(f"{run}@random", **wrong)


def test_unknown_checkpoint_keys_are_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match="'ema' is unknown; allowed: teacher, student"):
        load_backbone(str(run), checkpoint_key="ema")
