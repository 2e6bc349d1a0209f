"""Which settings may change when a run is resumed."""

from pathlib import Path
from typing import Any

import pytest

from patchssl.config import Config
from patchssl.errors import CheckpointError
from patchssl.recipes import parse_config
from patchssl.same_network import check_same_network

BEGUN: dict[str, Any] = {
    "views": {"global_size": 32, "local_size": 16},
    "model": {"arch": "vit_tiny_patch16_224", "cls_prototypes": 64, "patch_prototypes": 64, "init": "runs/first"},
}


def config(**sections: dict[str, Any]) -> Config:
    return parse_config({name: {**BEGUN.get(name, {}), **sections.get(name, {})} for name in {*BEGUN, *sections}})


def content(**sections: dict[str, Any]) -> dict[str, Any]:
    return {"config": config(**sections).model_dump(mode="json")}


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"arch": "vit_small_patch16_224"}, ["model.arch is vit_tiny_patch16_224 in the checkpoint and vit_small_"]),
        ({"patch_size": 8}, ["model.patch_size is 16 in the checkpoint and 8 in the configuration"]),
        ({"width": 96}, ["model.width is null in the checkpoint and 96 in the configuration"]),
        # Nothing in the weights tells these two.
        ({"num_heads": 6}, ["model.num_heads is null in the checkpoint and 6 in the configuration"]),
        ({"pooling": "mean"}, ["model.pooling is cls in the checkpoint and mean in the configuration"]),
        ({"head_hidden": 7}, ["model.head_hidden is 2048 in the checkpoint and 7 in the configuration"]),
        ({"shared_head": True}, ["model.shared_head is false in the checkpoint and true in the configuration"]),
        ({"init": None}, ["model.init is runs/first in the checkpoint and null in the configuration"]),
        ({"init_heads": True}, ["model.init_heads is false in the checkpoint and true in the configuration"]),
        (
            {"cls_prototypes": 9, "patch_prototypes": 8},
            ["model.cls_prototypes is 64 in the checkpoint and 9 in", "model.patch_prototypes is 64 in the checkpoint"],
        ),
    ],
)
def test_settings_of_networks_are_named_with_both_values(now: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_same_network(content(), config(model=now), Path("RUN/latest"))
    told = str(caught.value)
    assert told.startswith("RUN/latest does not fit the configuration: ")
    assert all(word in told for word in words)
    assert told.count(" in the checkpoint and ") == len(words)
    assert "resume with the settings of the checkpoint" in told


def test_the_size_and_patches_that_are_not_distilled() -> None:
    with pytest.raises(CheckpointError, match=r"views.global_size is 32 in the checkpoint and 64 in the configuration"):
        check_same_network(content(), config(views={"global_size": 64}), Path("f"))
    with pytest.raises(CheckpointError, match=r": loss.patch_weight is above 0 in the checkpoint and 0 in the conf"):
        check_same_network(content(), config(loss={"patch_weight": 0}), Path("f"))
    with pytest.raises(CheckpointError, match=r": loss.patch_weight is 0 in the checkpoint and above 0 in the conf"):
        check_same_network(content(loss={"patch_weight": 0}), config(), Path("f"))
    # Without patches nothing is built from their number of prototypes.
    without = {"patch_weight": 0}
    check_same_network(content(loss=without), config(loss=without, model={"patch_prototypes": 3}), Path("f"))


def test_centres_of_positions_do_not_fit_others() -> None:
    by_position = {"center": "position"}
    with pytest.raises(CheckpointError, match=r": loss.center is position in the checkpoint and another than position"):
        check_same_network(content(loss=by_position), config(), Path("f"))
    with pytest.raises(CheckpointError, match=r": loss.center is another than position in the checkpoint and position"):
        check_same_network(content(), config(loss=by_position), Path("f"))
    check_same_network(content(), config(loss={"center": "sinkhorn"}), Path("f"))
    # The class token has no position.
    check_same_network(
        content(loss={"patch_weight": 0}), config(loss={"patch_weight": 0, "center": "position"}), Path("f")
    )


def test_what_may_change() -> None:
    changed = config(
        model={"drop_path": 0.3, "crop_fraction": 1.0, "patch_size": 16},
        loss={"patch_weight": 0.5},
        train={"steps": 3, "learning_rate": 0.1},
        views={"num_local": 1},
    )
    check_same_network(content(), changed, Path("f"))


def test_checkpoints_from_before_a_setting_have_its_default() -> None:
    old = content(model={"init": None})
    del old["config"]["model"]["init"], old["config"]["model"]["init_heads"]
    check_same_network(old, config(model={"init": None}), Path("f"))


@pytest.mark.parametrize("damaged", [{}, {"model": {}}, {"model": {"arch": 3}, "views": {"global_size": 3}}])
def test_a_checkpoint_without_a_usable_configuration(damaged: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="f holds a configuration that cannot be used"):
        check_same_network({"config": damaged}, config(), Path("f"))
