"""Which settings and data may change when a run is resumed."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest

from patchssl.config import Config
from patchssl.errors import CheckpointError
from patchssl.names import names_sha256
from patchssl.recipes import parse_config
from patchssl.resumable import (
    EFFECTS,
    Effect,
    Hardware,
    check_resumable,
    check_same_data,
    identity,
    with_open_values,
)

BEGUN: dict[str, Any] = {
    "views": {"global_size": 32, "local_size": 16},
    "model": {"arch": "vit_tiny_patch16_224", "cls_prototypes": 64, "patch_prototypes": 64, "init": "runs/first"},
}
IDS = ("a/1.png", "a/2.png", "b/1.png")


def config(**sections: dict[str, Any]) -> Config:
    return parse_config({name: {**BEGUN.get(name, {}), **sections.get(name, {})} for name in {*BEGUN, *sections}})


def content(**sections: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": config(**sections).model_dump(mode="json"),
        "step": 3,
        **identity(IDS, Hardware("cuda", "bf16")),
    }


def test_every_setting_has_its_place_in_the_table() -> None:
    keys = [f"{section}.{key}" for section, values in Config().model_dump().items() for key in values]
    assert sorted(EFFECTS) == sorted(keys)


# One of each section that decides, with another value than the default or BEGUN has.
DECIDING = [
    ("data", "exif_orientation", False),
    ("views", "num_local", 1),
    ("views", "global_size", 64),
    ("photometric", "blur_probability", [1.0, 0.1, 1.0]),
    ("model", "arch", "vit_small_patch16_224"),
    ("model", "patch_size", 8),
    ("model", "drop_path", 0.3),
    ("model", "num_heads", 6),  # nothing in the weights tells these two
    ("model", "init", None),
    ("model", "shared_head", True),
    ("loss", "patch_weight", 0.5),
    ("loss", "center", "sinkhorn"),
    ("train", "batch_size", 32),
    ("train", "learning_rate", 0.5),
    ("train", "seed", 1),
]


@pytest.mark.parametrize(("section", "key", "value"), DECIDING)
def test_what_changes_the_result_is_refused_with_both_values(section: str, key: str, value: Any) -> None:
    assert EFFECTS[f"{section}.{key}"] is Effect.RESULT
    begun = {"train": {"learning_rate": 0.25}}
    with pytest.raises(CheckpointError) as caught:
        check_resumable(
            content(**begun), config(**{**begun, section: {**begun.get(section, {}), key: value}}), Path("RUN/f")
        )
    told = str(caught.value)
    assert told.startswith(f"RUN/f does not fit the configuration: {section}.{key} is ")
    assert told.count(" in the checkpoint and ") == 1
    assert "resume with the settings of the checkpoint, or begin another run in another --output" in told


def test_all_that_differs_is_named_at_once() -> None:
    words = (
        r": model.cls_prototypes is 64 in the checkpoint and 9 in the configuration; model.patch_prototypes is 64 in "
        r"the checkpoint and 8 in the configuration; train.seed is 0 in the checkpoint and 7 in the configuration; "
    )
    now = config(model={"cls_prototypes": 9, "patch_prototypes": 8}, train={"seed": 7})
    with pytest.raises(CheckpointError, match=words):
        check_resumable(content(), now, Path("f"))


def test_the_length_and_the_rounding_may_change_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    now = config(train={"steps": 9, "accumulate": 2, "precision": "bf16"}, log={"every_steps": 3})
    changes = check_resumable(content(), now, Path("f"))
    assert {change.name: change.effect for change in changes} == {
        "train.steps": Effect.LENGTH,
        "train.accumulate": Effect.ROUNDING,
        "train.precision": Effect.ROUNDING,
        "log.every_steps": Effect.NONE,
    }
    with caplog.at_level(logging.INFO):
        for change in changes:
            change.log()
    told = {record.message.split(" is now ")[0]: record for record in caplog.records}
    assert told["train.steps"].levelname == "WARNING"
    assert told["train.steps"].message == (
        "train.steps is now 9, it was null: what has been done stays, the schedules of what is left follow the new "
        "length"
    )
    assert told["train.precision"].message.startswith("train.precision is now bf16, it was auto: from here on")
    assert (told["log.every_steps"].levelname, told["log.every_steps"].message) == (
        "INFO",
        "log.every_steps is now 3, it was 10",
    )


def test_what_the_machine_makes_of_auto_counts() -> None:
    here = Hardware("cpu", "fp32", 2)
    changes = check_resumable(content(), config(), Path("f"), here)
    assert [(change.name, change.before, change.now) for change in changes] == [
        ("train.device", "cuda", "cpu"),
        ("train.precision", "bf16", "fp32"),
        ("the number of processes", 1, 2),
    ]
    assert {change.effect for change in changes} == {Effect.ROUNDING}
    same = check_resumable(content(), config(train={"device": "cuda"}), Path("f"), Hardware("cuda", "bf16"))
    assert same == []


def test_parts_of_a_batch_change_the_result_under_koleo() -> None:
    koleo = {"loss": {"koleo_weight": 0.1}}
    with pytest.raises(CheckpointError, match=r"train.accumulate is 1 in the checkpoint and 2 in the configuration"):
        check_resumable(content(**koleo), config(**koleo, train={"accumulate": 2}), Path("f"))


def test_what_means_the_same_is_no_change() -> None:
    assert check_resumable(content(), config(), Path("f")) == []
    assert check_resumable(content(), config(model={"patch_size": 16}), Path("f")) == []


def test_open_values_are_those_of_the_run() -> None:
    before = config(train={"learning_rate": 0.25, "ema_momentum": 0.9, "warmup_fraction": 0.2})
    filled = with_open_values(config(train={"ema_momentum": 0.5}), before).train
    assert (filled.learning_rate, filled.ema_momentum, filled.warmup_fraction) == (0.25, 0.5, 0.2)
    stored = {"config": before.model_dump(mode="json")}
    assert check_resumable(stored, config(), Path("f")) == []
    with pytest.raises(CheckpointError, match=r"train.ema_momentum is 0.9 in the checkpoint and 0.5"):
        check_resumable(stored, config(train={"ema_momentum": 0.5}), Path("f"))


def cached(side: int | None, place: str | None = "cache") -> dict[str, Any]:
    return {"data": {"cache_images": place, "cache_side": side}}


def test_a_cache_may_move_and_its_images_stay_as_small_as_they_are() -> None:
    assert with_open_values(config(**cached(None)), config(**cached(99))).data.cache_side == 99
    assert with_open_values(config(**cached(88)), config(**cached(99))).data.cache_side == 88
    assert with_open_values(config(**cached(None)), config(**cached(99, None))).data.cache_side is None
    (change,) = check_resumable(content(**cached(99)), config(**cached(None, "moved")), Path("f"))
    assert (change.name, change.effect) == ("data.cache_images", Effect.NONE)
    # Without a cache a size means nothing.
    assert check_resumable(content(**cached(99, None)), config(), Path("f")) == []


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (cached(99), cached(88), "is 99 in the checkpoint and 88 in the configuration; resume"),
        (
            cached(99),
            cached(99, None),
            "is 99 in the checkpoint and null in the configuration (images of the run come fr",
        ),
        (
            cached(99, None),
            cached(99),
            "is null in the checkpoint and 99 in the configuration (images of the run do not c",
        ),
        ({}, cached(99), "is null in the checkpoint and 99 in the configuration (images of the run do not c"),
    ],
)
def test_images_of_another_size_or_from_a_cache_are_refused(
    before: dict[str, Any], now: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_resumable(content(**before), config(**now), Path("f"))
    assert f"f does not fit the configuration: data.cache_side {words}" in str(caught.value)


def test_fewer_steps_than_have_been_done() -> None:
    with pytest.raises(CheckpointError, match=r"f has done 3 steps, more than the 2 that train.steps or train.epochs"):
        check_resumable(content(), config(train={"steps": 2}), Path("f"))
    assert check_resumable(content(train={"steps": 3}), config(train={"steps": 3}), Path("f")) == []


def test_checkpoints_from_before_a_setting_have_its_default() -> None:
    old = content(model={"init": None})
    del old["config"]["model"]["init"], old["config"]["model"]["init_heads"], old["config"]["log"]
    assert check_resumable(old, config(model={"init": None}), Path("f")) == []


@pytest.mark.parametrize("damaged", [{"model": {}, "views": 3}, {"model": {"arch": 3}}, {"model": {"new": 1}}, 7])
def test_a_checkpoint_without_a_usable_configuration(damaged: Any) -> None:
    with pytest.raises(CheckpointError, match="f holds a configuration that cannot be used"):
        check_resumable({"config": damaged}, config(), Path("f"))


def test_names_of_images_by_hand() -> None:
    assert names_sha256(()) == hashlib.sha256(b"").hexdigest()
    assert names_sha256(IDS) == hashlib.sha256(b"a/1.png\0a/2.png\0b/1.png").hexdigest()
    assert names_sha256(IDS) != names_sha256(IDS[::-1])
    assert names_sha256(["a", "b"]) != names_sha256(["a", "b", ""])
    assert names_sha256(["\udcff.png"]) == hashlib.sha256(b"\xff.png").hexdigest()


def test_other_data_are_refused() -> None:
    check_same_data(content(), IDS, Path("f"))
    with pytest.raises(
        CheckpointError, match="f was trained on 3 images, DATA holds 2; the order of samples would dif"
    ):
        check_same_data(content(), IDS[:2], Path("f"))
    with pytest.raises(CheckpointError, match="f was trained on 3 images of other names than those of DATA"):
        check_same_data(content(), ("a/1.png", "a/2.png", "b/2.png"), Path("f"))
