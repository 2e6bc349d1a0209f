"""Runs that start from a model: equal features, heads, and everything that does not fit."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from patchssl.backbones import load_backbone
from patchssl.backbones.protocol import fresh_weights
from patchssl.backbones.vit import vit_tokens
from patchssl.config import Config
from patchssl.errors import CheckpointError, ConfigError, PatchsslError
from patchssl.heads import head_state_from_dino
from patchssl.initial import Initial, initialise, keep_initial
from patchssl.recipes import parse_config
from patchssl.student_teacher import StudentTeacher

GOLDEN = Path(__file__).parent / "golden"
VIT, DINOV2, REGISTERS = "vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"
HEADS: dict[str, Any] = {"head_hidden": 16, "head_bottleneck": 8, "cls_prototypes": 12, "patch_prototypes": 8}
TINY: dict[str, Any] = {"arch": VIT, "patch_size": 8, "width": 16, "depth": 2, "num_heads": 2, **HEADS}
# As in the golden files.
NANO: dict[str, Any] = {"width": 48, "depth": 3, "num_heads": 3, **HEADS}
DINO_CHECKPOINT = GOLDEN / "dino_training_checkpoint.pth"
# What that checkpoint holds.
DINO: dict[str, Any] = {
    **{"arch": VIT, "patch_size": 8, "width": 48, "depth": 2, "num_heads": 3},
    **{"head_hidden": 32, "head_bottleneck": 16, "cls_prototypes": 96, "patch_prototypes": 8},
}


def config(model: dict[str, Any], *, size: int = 16, **loss: Any) -> Config:
    views = {"global_size": size, "local_size": size}
    return parse_config({"views": views, "model": model, "loss": loss, "train": {"steps": 1}})


def networks(model: dict[str, Any], *, size: int = 16, seed: int = 0, **loss: Any) -> StudentTeacher:
    with fresh_weights(seed):
        return StudentTeacher(config(model, size=size, **loss))


def started(model: dict[str, Any], spec: str | Path, *, size: int = 16, **loss: Any) -> tuple[StudentTeacher, Initial]:
    both = networks({**model, "init": str(spec)}, size=size, **loss)
    initial = initialise(both, seed=0)
    assert initial is not None
    return both, initial


def write_run(folder: Path, model: dict[str, Any], *, size: int = 16, **loss: Any) -> Path:
    """A run folder whose student and teacher differ, with centres that are not 0."""
    both = networks(model, size=size, seed=1, **loss)
    other = networks(model, size=size, seed=2, **loss)
    generator = torch.Generator().manual_seed(3)
    centers = {name: torch.randn(center.shape, generator=generator) for name, center in both.centers.items()}
    content = {
        "config": both.config.model_dump(mode="json"),
        "student": both.student.state_dict(),
        "teacher": other.teacher.state_dict(),
        "centers": centers,
    }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"format": 1, "kind": "patchssl-pretrain", "step": 3, **content}, folder / "checkpoints" / "latest")
    return folder


def golden_weights(name: str, folder: Path) -> Path:
    with np.load(GOLDEN / f"{name}.npz") as file:
        weights = {key.removeprefix("state."): torch.from_numpy(file[key]) for key in file if key.startswith("state.")}
    path = folder / f"{name}.pth"
    torch.save(weights, path)
    return path


def pixels(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))


def check_equal_features(both: StudentTeacher, spec: str | Path, size: int, num_heads: int | None = None) -> None:
    """Student and teacher give the tokens that the model gives."""
    there = load_backbone(str(spec), num_heads=num_heads).forward(pixels(size))
    assert there.patches.std() > 1e-3
    for network in (both.student, both.teacher):
        with torch.inference_mode():
            here = vit_tokens(network.eval().backbone, pixels(size))
        torch.testing.assert_close(here.cls, there.cls, rtol=0, atol=1e-5)
        torch.testing.assert_close(here.patches, there.patches, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arch", "patch", "learned", "resampling"),
    [
        ("dino_vit", VIT, 8, 64, "dino"),
        ("dinov2_vit_reg0", DINOV2, 14, 70, "dino"),
        ("dinov2_vit_reg4", REGISTERS, 14, 70, "dinov2-reg"),
    ],
)
def test_files_of_other_projects_give_their_features(
    name: str, arch: str, patch: int, learned: int, resampling: str, tmp_path: Path
) -> None:
    path = golden_weights(name, tmp_path)
    model = {**NANO, "arch": arch, "patch_size": patch}
    both, initial = started(model, path, size=learned)
    check_equal_features(both, path, learned, num_heads=3)
    assert "position embedding as it is" in initial.told[0]
    for size in (learned - patch, learned + 3 * patch):
        both, initial = started(model, path, size=size)
        check_equal_features(both, path, size, num_heads=3)
        side, here = learned // patch, size // patch
        assert f"resampled from {side}x{side} to {here}x{here} ({resampling})" in initial.told[0]
        assert initial.facts["positions"] == {
            "there": (side, side),
            "here": (here, here),
            "resampling": resampling,
        }
        assert initial.facts["transfer"]["resampled"] == 1


@pytest.mark.parametrize("size", [16, 40])
@pytest.mark.parametrize(
    "model",
    [TINY, {**TINY, "pooling": "mean"}, {**TINY, "arch": "deit3_small_patch16_224"}, {**TINY, "arch": REGISTERS}],
    ids=["cls", "mean", "positions-without-cls", "registers"],
)
def test_a_run_gives_the_features_of_its_teacher(model: dict[str, Any], size: int, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", model)
    both, initial = started(model, run, size=size)
    check_equal_features(both, run, size)
    if size == 16:
        # Where the grids are equal, as they were for local views, too.
        check_equal_features(both, run, 24)
    assert initial.facts["checkpoint_key"] == "teacher"
    assert initial.facts["weights_sha256"] == load_backbone(str(run)).weights_sha256
    assert initial.warnings == ()


@pytest.mark.parametrize("size", [32, 48])
def test_an_untrained_network_of_timm_and_one_with_the_weights_of_a_file(size: int, tmp_path: Path) -> None:
    # test_vit is timm's own smallest.
    spec = "timm:test_vit@random"
    both, initial = started({"arch": "test_vit", "patch_size": 16, **HEADS}, spec, size=size)
    check_equal_features(both, spec, size)
    assert "fresh weights of the backbone" in initial.told[0]
    file = tmp_path / "weights.safetensors"
    save_file(dict(load_backbone(spec, seed=4).network.state_dict()), file)
    both, _ = started({"arch": "test_vit", "patch_size": 16, **HEADS}, f"timm:test_vit@{file}", size=size)
    check_equal_features(both, f"timm:test_vit@{file}", size)


def test_positions_of_the_class_token_move_into_it_and_out_of_it(tmp_path: Path) -> None:
    # deit3 gives the class token no position, DINOv2 without registers does; else they are the same.
    path = golden_weights("dinov2_vit_reg0", tmp_path)
    inward, _ = started({**NANO, "arch": "deit3_small_patch16_224", "patch_size": 14}, path, size=70)
    assert inward.student.backbone.state_dict()["pos_embed"].shape == (1, 25, 48)
    check_equal_features(inward, path, 70, num_heads=3)
    run = write_run(tmp_path / "run", {**TINY, "arch": "deit3_small_patch16_224"})
    outward, _ = started({**TINY, "arch": DINOV2}, run)
    assert outward.student.backbone.state_dict()["pos_embed"].shape == (1, 5, 16)
    check_equal_features(outward, run, 16)


def test_random_weights_follow_from_the_seed_and_the_global_generator_is_left_alone() -> None:
    model = {"arch": "test_vit", "patch_size": 16, **HEADS, "init": "timm:test_vit@random"}
    both = networks(model, size=32)
    before = torch.get_rng_state()
    initialise(both, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    expected = load_backbone("timm:test_vit@random", seed=7).network.state_dict()["blocks.0.attn.qkv.weight"]
    torch.testing.assert_close(both.student.backbone.state_dict()["blocks.0.attn.qkv.weight"], expected)


def test_a_network_for_other_colours_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    _, initial = started({"arch": "test_vit", "patch_size": 16, **HEADS}, "timm:test_vit@random", size=32)
    with caplog.at_level(logging.INFO):
        initial.log()
    levels = {record.levelname: record.getMessage() for record in caplog.records}
    assert "pixels of mean 0.5/0.5/0.5 and standard deviation 0.5/0.5/0.5" in levels["WARNING"]
    assert "0.485/0.456/0.406" in levels["WARNING"]
    assert initial.facts["mean"] == (0.5, 0.5, 0.5)


REFUSED_RUNS: list[tuple[dict[str, Any], str]] = [
    ({"width": 32}, "width 16 there, 32 here; set model.width=16, or take its configuration, --config RUN/config.yaml"),
    ({"depth": 3}, "depth 2 there, 3 here; set model.depth=2"),
    ({"num_heads": 4}, "heads 2 there, 4 here; set model.num_heads=2"),
    ({"patch_size": 4}, "patch 8 there, 4 here; set model.patch_size=8"),
    ({"pooling": "mean"}, "class token yes there, no here; set model.pooling=cls"),
    ({"arch": REGISTERS}, f"registers 0 there, 4 here; LayerScale no there, yes here; set model.arch={VIT}"),
    ({"arch": DINOV2}, f"LayerScale no there, yes here; set model.arch={VIT}"),
    ({"arch": "vit_base_patch16_clip_quickgelu_224"}, "QuickGELU here; norm LayerNorm (eps 1e-06) there"),
    (
        {"width": 32, "depth": 1, "num_heads": 1, "patch_size": 4},
        "width 16 there, 32 here; depth 2 there, 1 here; heads 2 there, 1 here; patch 8 there, 4 here; "
        "set model.patch_size=8 model.width=16 model.depth=2 model.num_heads=2",
    ),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED_RUNS, ids=[", ".join(changes) for changes, _ in REFUSED_RUNS])
def test_a_run_of_another_architecture_is_refused_with_what_to_set(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", TINY)
    (run / "config.yaml").touch()
    both = networks({**TINY, **changes, "init": str(run)})
    before = {name: value.clone() for name, value in both.student.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        initialise(both, seed=0)
    told = str(caught.value).replace(str(run), "RUN")
    assert words in told
    assert told.startswith(f"init RUN (patchssl {VIT}) is another network than the configuration asks for (model.arch ")
    assert all(torch.equal(value, before[name]) for name, value in both.student.state_dict().items())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dino_vit", "model.patch_size=8 model.depth=3"),
        ("dinov2_vit_reg0", f"model.arch={DINOV2} model.depth=3"),
        ("dinov2_vit_reg4", f"model.arch={REGISTERS} model.depth=3"),
    ],
)
def test_the_settings_that_a_refusal_names_are_those_that_work(name: str, settings: str, tmp_path: Path) -> None:
    path = golden_weights(name, tmp_path)
    # The number of heads, which such a file does not tell, is the configuration's.
    wrong = {"arch": "vit_small_patch16_224", "num_heads": 3, "width": 48, **HEADS}
    with pytest.raises(ConfigError) as caught:
        started(wrong, path, size=112)
    told = str(caught.value).partition("; set ")[2]
    found = dict(setting.removeprefix("model.").split("=") for setting in told.split())
    assert told == settings
    right = {**wrong, **{key: int(value) if value.isdigit() else value for key, value in found.items()}}
    both, _ = started(right, path, size=112)
    check_equal_features(both, path, 112, num_heads=3)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("floor:raw-pixels", ConfigError, "is a model of floor; pretraining goes on from ViTs of timm's"),
        ("torchvision:resnet18@random", ConfigError, "is a model of torchvision; pretraining goes on from ViTs"),
        ("timm:resnet18", ConfigError, r"\(timm resnet18\) is a network of type ResNet; pretraining goes on"),
        ("timm:vit_small_patch16_dinov3", ConfigError, "is a network of type Eva; .* with learned positions"),
        # Without a network: it is refused before weights are asked for.
        ("timm:vit_base_patch16_224.augreg_in21k", ConfigError, "width 768 there, 16 here.* model.width=768"),
        ("timm:no_such_vit", ConfigError, "knows no architecture 'no_such_vit'"),
        ("nowhere/at/all", ConfigError, "there is no folder or file 'nowhere/at/all'"),
    ],
)
def test_models_that_cannot_be_gone_on_from(spec: str, error: type[PatchsslError], words: str) -> None:
    with pytest.raises(error, match=words):
        started(TINY, spec)


@pytest.mark.parametrize(
    ("name", "words"),
    [("test_vit3", "pools its tokens by attention"), ("test_vit2", "by a mean with a norm")],
)
def test_a_vit_that_ends_with_a_pool_of_its_own_is_refused(name: str, words: str) -> None:
    # Most of its weights would fit; what it says of an image is no token.
    with pytest.raises(ConfigError, match=words):
        started({"arch": name, "patch_size": 16, "pooling": "mean", **HEADS}, f"timm:{name}@random", size=32)


def test_an_architecture_without_a_class_token_is_no_run_of_class_tokens(tmp_path: Path) -> None:
    model = {**TINY, "arch": "vit_medium_patch16_gap_240"}
    run = write_run(tmp_path / "run", {**model, "pooling": "mean"})
    started({**model, "pooling": "mean"}, run)
    with pytest.raises(ConfigError, match=r"sums an image up by mean, .* model.pooling=cls; set model.pooling=mean"):
        started(model, run)


def test_a_file_that_leaves_weights_unfilled_is_refused_without_offering_what_pretraining_has_not(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "run", TINY)
    path = run / "checkpoints" / "latest"
    content = torch.load(path)
    del content["teacher"]["backbone.norm.weight"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"1 missing \(norm.weight\)") as caught:
        started(TINY, run)
    assert "--allow-partial" not in str(caught.value)


def head_of(content: dict[str, Any], key: str, kind: str) -> dict[str, Tensor]:
    start = f"{kind}_head."
    return {name.removeprefix(start): value for name, value in content[key].items() if name.startswith(start)}


def test_heads_stay_fresh_unless_asked_for(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", TINY)
    both, initial = started(TINY, run)
    fresh = networks(TINY)
    torch.testing.assert_close(both.student.cls_head.state_dict(), fresh.student.cls_head.state_dict())
    assert initial.told[1].startswith("projection heads start fresh; --init-heads takes")
    assert initial.facts["heads"] == {"cls": "fresh", "patch": "fresh"}
    assert all(not center.any() for center in both.centers.values())
    # Other heads are no hindrance then.
    started({**TINY, "cls_prototypes": 20, "head_hidden": 8}, run)


def test_the_heads_and_centres_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", TINY)
    content = torch.load(run / "checkpoints" / "latest")
    both, initial = started({**TINY, "init_heads": True}, run)
    for network in (both.student, both.teacher):
        assert network.patch_head is not None
        torch.testing.assert_close(dict(network.cls_head.state_dict()), head_of(content, "teacher", "cls"))
        torch.testing.assert_close(dict(network.patch_head.state_dict()), head_of(content, "teacher", "patch"))
    torch.testing.assert_close(both.centers, content["centers"])
    assert initial.told[1] == (
        "projection heads: head for cls loaded, head for patch loaded, centre of cls loaded, centre of patch loaded"
    )
    torch.testing.assert_close(both.teacher.state_dict(), both.student.state_dict())


SHARED = {**TINY, "shared_head": True, "patch_prototypes": 12}
# Model and loss there and here; which heads, then which centres are taken.
HEAD_CASES = [
    (SHARED, {}, SHARED, {}, {"cls": "loaded"}, {"cls": "loaded", "patch": "loaded"}),
    (SHARED, {}, TINY, {}, {"cls": "loaded", "patch": "fresh"}, {"cls": "loaded", "patch": "fresh"}),
    (TINY, {}, SHARED, {}, {"cls": "loaded"}, {"cls": "loaded", "patch": "fresh"}),
    (TINY, {}, TINY, {"patch_weight": 0}, {"cls": "loaded"}, {"cls": "loaded"}),
    (TINY, {"patch_weight": 0}, TINY, {}, {"cls": "loaded", "patch": "fresh"}, {"cls": "loaded", "patch": "fresh"}),
    (
        TINY,
        {},
        TINY,
        {"center": "position"},
        {"cls": "loaded", "patch": "loaded"},
        {"cls": "loaded", "patch": "fresh"},
    ),
]


@pytest.mark.parametrize(
    ("there", "loss_there", "here", "loss_here", "heads", "centers"),
    HEAD_CASES,
    ids=["shared", "shared-to-two", "two-to-shared", "to-dino", "of-dino", "centre-per-position"],
)
def test_heads_go_where_they_belong(
    there: dict[str, Any],
    loss_there: dict[str, Any],
    here: dict[str, Any],
    loss_here: dict[str, Any],
    heads: dict[str, str],
    centers: dict[str, str],
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "run", there, **loss_there)
    content = torch.load(run / "checkpoints" / "latest")
    both, initial = started({**here, "init_heads": True}, run, **loss_here)
    assert (initial.facts["heads"], initial.facts["centers"]) == (heads, centers)
    torch.testing.assert_close(dict(both.student.cls_head.state_dict()), head_of(content, "teacher", "cls"))
    for name, center in both.centers.items():
        if centers[name] == "loaded":
            torch.testing.assert_close(center, content["centers"][name])
        else:
            assert not center.any()
    if heads.get("patch") == "fresh":
        assert "head for patch fresh, since init has none for patches" in initial.told[1]
    if "patch" not in heads and "shared_head" not in there:
        assert "init's own for patches left, since the configuration has none" in initial.told[1]


def test_the_head_and_centre_of_dinos_training_checkpoint() -> None:
    content = torch.load(DINO_CHECKPOINT, weights_only=False)
    state = head_state_from_dino({name: value for name, value in content["teacher"].items() if "head." in name})
    both, initial = started({**DINO, "init_heads": True}, DINO_CHECKPOINT, size=64)
    torch.testing.assert_close(dict(both.teacher.cls_head.state_dict()), state)
    torch.testing.assert_close(both.centers["cls"], content["dino_loss"]["center"])
    assert initial.facts["heads"] == {"cls": "loaded", "patch": "fresh"}
    check_equal_features(both, DINO_CHECKPOINT, 64)
    shared, _ = started(
        {**DINO, "shared_head": True, "patch_prototypes": 96, "init_heads": True}, DINO_CHECKPOINT, size=64
    )
    torch.testing.assert_close(dict(shared.student.cls_head.state_dict()), state)


def test_both_heads_of_dinov2_and_what_ibot_has_besides(
    tmp_path: Path,
) -> None:
    run = torch.load(write_run(tmp_path / "run", TINY) / "checkpoints" / "latest")["teacher"]
    backbone = {name: value for name, value in run.items() if name.startswith("backbone.")}
    cls, patch = (
        {name.removeprefix(f"{kind}_head."): value for name, value in run.items() if name.startswith(f"{kind}_head.")}
        for kind in ("cls", "patch")
    )

    def saved(name: str, heads: dict[str, Tensor]) -> Path:
        path = tmp_path / name
        torch.save({"teacher": {**backbone, **heads}}, path)
        return path

    dinov2 = {f"dino_head.{name}": value for name, value in cls.items()}
    dinov2 |= {f"ibot_head.{name}": value for name, value in patch.items()}
    both, initial = started({**TINY, "init_heads": True}, saved("dinov2.pth", dinov2))
    assert both.student.patch_head is not None
    torch.testing.assert_close(dict(both.student.cls_head.state_dict()), cls)
    torch.testing.assert_close(dict(both.student.patch_head.state_dict()), patch)
    ibot = {f"head.{name}": value for name, value in cls.items()}
    ibot |= {"head.last_layer2.weight_g": torch.ones(8, 1), "head.last_layer2.weight_v": torch.ones(8, 8)}
    both, initial = started({**TINY, "init_heads": True}, saved("ibot.pth", ibot))
    assert initial.facts["family"] == "ibot"
    torch.testing.assert_close(dict(both.student.cls_head.state_dict()), cls)
    assert initial.told[1].endswith("; without a place: last_layer2.weight_g, last_layer2.weight_v")
    normed = {f"head.{name.replace('mlp.2', 'mlp.3')}": value for name, value in cls.items()}
    with pytest.raises(ConfigError, match=r"for cls lacks mlp.2.bias, mlp.2.weight; only heads of three linear"):
        started({**TINY, "init_heads": True}, saved("normed.pth", normed))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cls_prototypes": 20}, "cls_prototypes 12 there, 20 here; set model.cls_prototypes=12, or let"),
        ({"patch_prototypes": 20}, "patch_prototypes 8 there, 20 here; set model.patch_prototypes=8, or let"),
        ({"head_hidden": 20}, "head_hidden 16 there, 20 here; .* set model.head_hidden=16, or let"),
        ({"head_bottleneck": 20}, "head_bottleneck 8 there, 20 here; .* set model.head_bottleneck=8, or let"),
        (
            {"shared_head": True, "cls_prototypes": 20, "patch_prototypes": 20},
            "cls_prototypes 12 there, 20 here; set model.cls_prototypes=12 model.patch_prototypes=12, or let them",
        ),
    ],
)
def test_heads_that_do_not_fit_are_refused_with_both_numbers(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", TINY)
    with pytest.raises(ConfigError, match=words):
        started({**TINY, **changes, "init_heads": True}, run)


def test_norms_of_prototypes_that_were_learned_need_a_head_that_keeps_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {**TINY, "norm_last_layer": False})
    path = run / "checkpoints" / "latest"
    content = torch.load(path)
    content["teacher"]["cls_head.last_layer.weight_g"][0] = 1.5
    torch.save(content, path)
    with pytest.raises(ConfigError, match=r"cls from 1 to 1.5 there, fixed at 1 here; set model.norm_last_layer=fa"):
        started({**TINY, "init_heads": True}, run)
    both, _ = started({**TINY, "norm_last_layer": False, "init_heads": True}, run)
    assert both.student.cls_head.last_layer.weight_g[0].item() == 1.5


def test_models_without_heads_are_refused_where_heads_are_asked_for(tmp_path: Path) -> None:
    path = golden_weights("dino_vit", tmp_path)
    words = r"has no projection heads; a run of patchssl and a full training checkpoint of DINO have"
    with pytest.raises(ConfigError, match=words):
        started({**NANO, "arch": VIT, "patch_size": 8, "init_heads": True}, path, size=64)
    with pytest.raises(ConfigError, match=words):
        started({"arch": "test_vit", "patch_size": 16, **HEADS, "init_heads": True}, "timm:test_vit@random", size=32)
    run = write_run(tmp_path / "run", TINY)
    with pytest.raises(ConfigError, match=words):
        started({**TINY, "init_heads": True}, f"{run}@random")


def test_without_a_model_nothing_changes() -> None:
    both, fresh = networks(TINY), networks(TINY)
    assert initialise(both, seed=0) is None
    torch.testing.assert_close(both.student.state_dict(), fresh.student.state_dict(), rtol=0, atol=0)


def test_what_a_run_started_from_is_kept_in_its_folder(tmp_path: Path) -> None:
    source = write_run(tmp_path / "source", TINY)
    _, initial = started({**TINY, "init_heads": True}, source, size=32)
    run = tmp_path / "run"
    run.mkdir()
    keep_initial(run, initial)
    kept = json.loads((run / "init.json").read_text())
    assert (kept["spec"], kept["family"], kept["arch"]) == (str(source), "patchssl", VIT)
    assert kept["weights_sha256"] == load_backbone(str(source)).weights_sha256
    assert kept["positions"] == {"there": [2, 2], "here": [4, 4], "resampling": "timm"}
    keep_initial(run, None)
    assert list(run.iterdir()) == []
    keep_initial(run, None)


def test_runs_of_before_have_no_such_settings_and_can_be_loaded_and_gone_on_from(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", TINY)
    path = run / "checkpoints" / "latest"
    content = torch.load(path)
    for name in ("init", "init_heads"):
        del content["config"]["model"][name]
    torch.save(content, path)
    both, _ = started(TINY, run)
    check_equal_features(both, run, 16)
