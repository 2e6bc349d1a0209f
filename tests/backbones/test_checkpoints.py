import argparse
from typing import Any

import pytest
import torch
from torch import Tensor

from patchssl.backbones.checkpoints import pick_network
from patchssl.errors import CheckpointError


def flat(value: float = 1.0) -> dict[str, Tensor]:
    return {"cls_token": torch.tensor(value), "blocks.0.attn.qkv.weight": torch.tensor(value)}


def under(prefix: str, value: float = 1.0) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in flat(value).items()}


HEAD = {"head.mlp.0.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    "content",
    [
        flat(),
        {"state_dict": flat()},
        {"model": flat(), "optimizer": {"state": {}}, "epoch": 3},
        {"backbone": flat(), "head": HEAD},
        {"teacher": flat()},
        {"teacher": under("backbone.") | HEAD},
        {"student": under("module.backbone.") | {f"module.{name}": value for name, value in HEAD.items()}},
        {"model": under("module._orig_mod.")},
        {"state_dict": under("_orig_mod.module.backbone.")},
        {"state_dict": under("module.module.")},
        {"teacher": {"backbone.cls_token": torch.tensor(1.0)} | {
            "backbone.blocks.0._checkpoint_wrapped_module.attn.qkv.weight": torch.tensor(1.0)
        }},
        under("teacher.backbone.") | under("student.backbone.", 2.0) | {"teacher.dino_head.mlp.0": torch.ones(1)},
        {"model": under("teacher.backbone.")},
        {"model_ema": flat(), "model": flat(2.0)},
        {"state_dict": flat(2.0), "state_dict_ema": flat()},
    ],
)  # fmt: skip
def test_every_wrapping_leads_to_the_backbone(content: dict[str, Any]) -> None:
    found = pick_network(content, None, "file").weights
    assert {name: float(value) for name, value in found.items()} == {
        "cls_token": 1.0,
        "blocks.0.attn.qkv.weight": 1.0,
    }


def test_only_whole_prefixes_are_taken_off() -> None:
    content = {"backbone.my_module.backbone.weight": torch.ones(1), "backbone.submodule.x": torch.ones(1)}
    assert set(pick_network(content, None, "file").weights) == {"my_module.backbone.weight", "submodule.x"}
    # A prefix that not all names have is part of a name.
    content = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert set(pick_network(content, None, "file").weights) == {"module.a", "b"}


def test_what_lies_beside_the_backbone_is_listed() -> None:
    found = pick_network({"teacher": under("backbone.") | HEAD}, None, "file")
    assert found.outside == {"head.mlp.0.weight": HEAD["head.mlp.0.weight"]}


def test_student_and_teacher() -> None:
    content = {"student": under("module.backbone.", 2.0), "teacher": under("backbone."), "epoch": 1}
    values = {key: float(pick_network(content, key, "f").weights["cls_token"]) for key in (None, "teacher", "student")}
    assert values == {None: 1.0, "teacher": 1.0, "student": 2.0}
    assert pick_network(content, None, "f").checkpoint_key == "teacher"
    del content["teacher"]
    assert pick_network(content, None, "f").checkpoint_key == "student"
    assert pick_network(flat(), None, "f").checkpoint_key is None


@pytest.mark.parametrize(
    ("content", "key", "words"),
    [
        (
            {"teacher": under("backbone."), "epoch": 3, "optimizer": {"state": {}}},
            "student",
            r"student is asked for, and FILE holds only the teacher; it holds: teacher \(2 entries\), epoch, "
            r"optimizer \(1 entries\); take --checkpoint-key teacher",
        ),
        ({"student": flat()}, "teacher", "teacher is asked for, and FILE holds only the student"),
        (flat(), "student", "one network that it calls neither teacher nor student; .* leave --checkpoint-key out"),
        ({"state_dict": flat()}, "teacher", "neither teacher nor student"),
    ],
)
def test_a_network_that_is_not_there_is_told_with_what_is(content: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        pick_network(content, key, "FILE")


@pytest.mark.parametrize(
    ("more", "arch"),
    [
        ({"args": argparse.Namespace(arch="vit_small")}, "vit_small"),
        ({"args": {"model": "vit_base_patch16_224"}}, "vit_base_patch16_224"),
        ({"arch": "resnet50", "args": None}, "resnet50"),
        ({"args": argparse.Namespace(lr=1)}, None),
        ({"arch": 3}, None),
        ({}, None),
    ],
)
def test_the_architecture_that_a_script_wrote(more: dict[str, Any], arch: str | None) -> None:
    assert pick_network({"model": flat(), **more}, None, "file").arch == arch
