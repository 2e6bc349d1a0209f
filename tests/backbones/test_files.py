"""Weight files of every project: family, architecture and features; and every file that must be refused."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from patchssl.backbones import Backbone, load_backbone
from patchssl.errors import CheckpointError, ConfigError

State = dict[str, Tensor]
Draw = Callable[..., State]


def saved(content: Any, folder: Path, name: str = "weights.pth") -> str:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def pixels(side: int = 32, num: int = 2) -> Tensor:
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(7))


def same_features(first: Backbone, second: Backbone) -> bool:
    one, two = first.forward(pixels(4 * first.patch_px)), second.forward(pixels(4 * first.patch_px))
    return torch.equal(one.cls, two.cls) and torch.equal(one.patches, two.patches)


HEAD = {"head.mlp.0.weight": torch.zeros(2, 2), "head.last_layer.weight_g": torch.ones(2, 1)}


def test_dino_backbone(draw_vit: Draw, tmp_path: Path) -> None:
    backbone = load_backbone(saved(draw_vit(dim=192, depth=3, patch=16), tmp_path))
    assert (backbone.family, backbone.arch, backbone.num_heads) == ("dino", "vit_width192_depth3_patch16", 3)
    assert (backbone.dim, backbone.patch_px, backbone.num_blocks, backbone.num_registers) == (192, 16, 3, 0)
    assert (backbone.positions, backbone.checkpoint_key, backbone.pooling) == ("dino", None, "cls")
    assert (backbone.preprocess.image_px, backbone.preprocess.resize_px) == (224, 256)
    assert backbone.preprocess.mean == (0.485, 0.456, 0.406)
    assert backbone.load is not None
    assert (backbone.load.missing, backbone.load.unexpected, backbone.load.dropped) == ((), (), ())


def test_usual_networks_have_their_names(draw_vit: Draw, tmp_path: Path) -> None:
    backbone = load_backbone(saved(draw_vit(dim=192, depth=12, patch=16, side=2, registers=4), tmp_path))
    assert (backbone.arch, backbone.num_heads) == ("vit_tiny_patch16_reg4", 3)


def test_ibot_and_pwself_are_told_by_what_stands_beside_the_backbone(draw_vit: Draw, tmp_path: Path) -> None:
    plain = load_backbone(saved(draw_vit(), tmp_path), num_heads=3)
    inside = under("backbone.", draw_vit())
    args = argparse.Namespace(arch="vit_tiny")
    ibot = {
        "teacher": inside | HEAD,
        "student": under("module.", inside) | {"module.backbone.masked_embed": torch.zeros(1, 48)},
        "ibot_loss": {"center": torch.zeros(1, 2), "center2": torch.zeros(1, 1, 2)},
        "args": args,
    }
    pwself = {"teacher": inside | HEAD, "dino_loss": {"center": torch.zeros(1, 17, 2)}, "args": args}
    for family, content in (("ibot", ibot), ("pwself", pwself)):
        backbone = load_backbone(saved(content, tmp_path))
        assert (backbone.family, backbone.checkpoint_key, backbone.num_heads) == (family, "teacher", 3)
        assert same_features(backbone, plain)
    student = load_backbone(saved(ibot, tmp_path), checkpoint_key="student")
    assert same_features(student, plain)
    assert student.load is not None
    assert student.load.dropped == ("masked_embed",)
    bare = load_backbone(
        saved({"state_dict": draw_vit() | {"masked_embed": torch.zeros(1, 48)}}, tmp_path), num_heads=3
    )
    assert bare.family == "ibot"


def test_layer_scale_as_ibot_writes_it(draw_vit: Draw, tmp_path: Path) -> None:
    state = draw_vit(layer_scale=True)
    ibots = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value for name, value in state.items()
    }
    first = load_backbone(saved(state, tmp_path), num_heads=3)
    second = load_backbone(saved(ibots, tmp_path), num_heads=3)
    assert (first.family, second.family) == ("dinov2", "dino")
    assert same_features(first, second)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_dinov2_flat_in_chunks_and_as_a_training_checkpoint(suffix: str, draw_vit: Draw, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"patch": 14, "layer_scale": True, "registers": 4, "depth": 4}
    flat = load_backbone(saved(draw_vit(**shape) | {"mask_token": torch.zeros(1, 48)}, tmp_path), num_heads=3)
    assert (flat.family, flat.arch, flat.positions) == ("dinov2", "vit_width48_depth4_patch14_reg4", "dinov2-reg")
    chunked = draw_vit(**shape, chunk=2)
    assert "blocks.1.3.norm1.weight" in chunked
    spec = saved(chunked, tmp_path, f"chunked{suffix}")
    assert same_features(load_backbone(spec, num_heads=3), flat)
    heads = {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.mlp.0.weight": torch.zeros(2, 2)}
    training = {"teacher": under("backbone.", chunked) | heads}
    backbone = load_backbone(saved(training, tmp_path), num_heads=3)
    assert same_features(backbone, flat)
    assert backbone.load is not None
    assert set(backbone.load.dropped) == set(heads)


def test_swiglu(draw_vit: Draw, tmp_path: Path) -> None:
    state = draw_vit(layer_scale=True, gated=True, depth=1)
    backbone = load_backbone(saved(state, tmp_path), num_heads=3)
    block: Any = backbone.network.blocks[0]  # type: ignore[index]
    x = torch.randn(2, 5, 48)
    gate, value = torch.nn.functional.linear(x, state["blocks.0.mlp.w12.weight"], state["blocks.0.mlp.w12.bias"]).chunk(
        2, dim=-1
    )
    expected = torch.nn.functional.linear(
        torch.nn.functional.silu(gate) * value, state["blocks.0.mlp.w3.weight"], state["blocks.0.mlp.w3.bias"]
    )
    torch.testing.assert_close(block.mlp(x), expected)


def test_registers_are_no_patches_and_never_enter_their_mean(draw_vit: Draw, tmp_path: Path) -> None:
    state = draw_vit(registers=4)
    backbone = load_backbone(saved(state, tmp_path), num_heads=3)
    tokens = backbone.forward(pixels())
    assert tokens.patches.shape == (2, 16, 48)
    network: Any = backbone.network
    sequence = network.forward_features(pixels())
    assert sequence.shape == (2, 1 + 4 + 16, 48)
    torch.testing.assert_close(tokens.patches, sequence[:, 5:])
    torch.testing.assert_close(tokens.cls, sequence[:, 0])
    assert (tokens.patches.mean(1) - sequence[:, 1:].mean(1)).abs().max() > 0.01


def test_features_do_not_depend_on_the_batch(draw_vit: Draw, tmp_path: Path) -> None:
    backbone = load_backbone(saved(draw_vit(registers=4, layer_scale=True), tmp_path), num_heads=3)
    together = backbone.forward(pixels(num=5)).cls
    alone = torch.cat([backbone.forward(image[None]).cls for image in pixels(num=5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_heads_are_never_guessed(draw_vit: Draw, tmp_path: Path) -> None:
    spec = saved(draw_vit(), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"width 48, and no weight tells how many heads .* --num-heads N, or --arch"
    ):
        load_backbone(spec)
    assert load_backbone(spec, num_heads=4).num_heads == 4
    assert not same_features(load_backbone(spec, num_heads=4), load_backbone(spec, num_heads=3))
    with pytest.raises(ConfigError, match="5 heads do not divide the width 48"):
        load_backbone(spec, num_heads=5)
    usual = saved(draw_vit(dim=384, depth=1), tmp_path, "usual.pth")
    assert load_backbone(usual).num_heads == 6
    assert load_backbone(usual, num_heads=12).num_heads == 12
    contrary = {"model": draw_vit(dim=384, depth=1), "args": argparse.Namespace(arch="vit_base")}
    with pytest.raises(CheckpointError, match="calls itself vit_base, which has 12 heads, and has the width 384"):
        load_backbone(saved(contrary, tmp_path))


@pytest.mark.usefixtures("nano")
def test_a_named_architecture_must_be_the_files(draw_vit: Draw, tmp_path: Path) -> None:
    nano = saved(draw_vit(patch=14), tmp_path, "nano.pth")
    assert load_backbone(nano, arch="vit_nano_patch14_dinov2").num_heads == 3
    tiny = saved(draw_vit(dim=192, depth=12, patch=16, side=2), tmp_path)
    assert load_backbone(tiny, arch="vit_tiny").num_heads == 3
    told = {
        "vit_small": "width 384 in vit_small, 192 in the file",
        "vit_large": "width 1024 in vit_large, 192 in the file; blocks 24 in vit_large, 12 in the file",
        "vit_nano_patch14_reg4_dinov2": "width 48 in .*; patch 14 in .* 16 in the file; registers 4 in .* 0 in",
    }
    for arch, words in told.items():
        with pytest.raises(CheckpointError, match=rf"is not of --arch {arch}: .*{words}"):
            load_backbone(tiny, arch=arch)
    with pytest.raises(ConfigError, match="--num-heads 4 contradicts --arch vit_tiny, which has 3"):
        load_backbone(tiny, arch="vit_tiny", num_heads=4)
    with pytest.raises(ConfigError, match="--arch 'vit_enormous' is unknown to timm"):
        load_backbone(tiny, arch="vit_enormous")
    with pytest.raises(ConfigError, match="--arch 'test_resnet' is a ResNet, and the file holds a ViT"):
        load_backbone(tiny, arch="test_resnet")


@pytest.mark.usefixtures("nano")
def test_registers_and_none_are_not_mixed_up(draw_vit: Draw, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"patch": 14, "layer_scale": True}
    mask = {"mask_token": torch.zeros(1, 48)}
    with_registers = saved(draw_vit(**shape, registers=4) | mask, tmp_path, "reg.pth")
    without = saved(draw_vit(**shape) | mask, tmp_path, "plain.pth")
    plain, reg = "vit_nano_patch14_dinov2", "vit_nano_patch14_reg4_dinov2"
    with pytest.raises(CheckpointError, match="registers 0 in vit_nano_patch14_dinov2, 4 in the file"):
        load_backbone(with_registers, arch=plain)
    with pytest.raises(CheckpointError, match="registers 4 in vit_nano_patch14_reg4_dinov2, 0 in the file"):
        load_backbone(without, arch=reg)
    with pytest.raises(
        CheckpointError, match=r"reg.pth has 4 registers and timm:vit_nano_patch14_dinov2 has none; take"
    ):
        load_backbone(f"timm:{plain}@{with_registers}")
    with pytest.raises(CheckpointError, match=r"plain.pth has no registers and timm:vit_nano_.* has 4; .* without"):
        load_backbone(f"timm:{reg}@{without}")
    # The right ones load, by the file alone and through timm, and agree where nothing is resampled.
    for file, arch in ((with_registers, reg), (without, plain)):
        alone, through = load_backbone(file, arch=arch), load_backbone(f"timm:{arch}@{file}")
        assert (alone.family, through.family, alone.num_registers) == ("dinov2", "timm", through.num_registers)
        one, two = alone.forward(pixels(56)), through.forward(pixels(56))
        torch.testing.assert_close(one.patches, two.patches, rtol=0, atol=1e-4)
        torch.testing.assert_close(one.cls, two.cls, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["norm.weight", "blocks.0.mlp.fc1.bias", "blocks.1.attn.qkv.weight", "blocks.0.ls2.gamma"]
)
def test_a_missing_weight_is_refused_unless_partial_is_allowed(name: str, draw_vit: Draw, tmp_path: Path) -> None:
    state = draw_vit(layer_scale=True)
    del state[name]
    spec = saved(state, tmp_path)
    with pytest.raises(CheckpointError, match=rf"1 missing \({name}\); .*--allow-partial"):
        load_backbone(spec, num_heads=3)
    backbone = load_backbone(spec, num_heads=3, allow_partial=True)
    assert backbone.facts()["load"]["missing"] == 1
    assert backbone.facts()["load"]["partial"]
    assert backbone.facts()["load"]["names"] == {"missing": [name]}
    # What is missing follows from the seed.
    hashes = [load_backbone(spec, num_heads=3, allow_partial=True, seed=seed).weights_sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1]
    if name.endswith("qkv.weight"):
        assert hashes[0] != hashes[2]


def test_superfluous_weights_and_missing_blocks_are_refused(draw_vit: Draw, tmp_path: Path) -> None:
    extra = draw_vit() | {"adapter.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match=r"1 unexpected \(adapter.weight\)"):
        load_backbone(saved(extra, tmp_path), num_heads=3)
    gap = {name: value for name, value in draw_vit(depth=3).items() if not name.startswith("blocks.1.")}
    with pytest.raises(CheckpointError, match=r"12 missing \(blocks.1.attn.proj.bias, .*…\)"):
        load_backbone(saved(gap, tmp_path), num_heads=3)
    short = draw_vit()
    short["blocks.1.norm1.weight"] = torch.ones(47)
    with pytest.raises(CheckpointError, match=r"1 of another shape .blocks.1.norm1.weight: 47 in the file, 48 here"):
        load_backbone(saved(short, tmp_path), num_heads=3)
    oblong = draw_vit()
    oblong["pos_embed"] = torch.zeros(1, 16, 48)
    with pytest.raises(CheckpointError, match="15 positions beside the class token's"):
        load_backbone(saved(oblong, tmp_path), num_heads=3)


@pytest.mark.parametrize(
    "content",
    [
        {"teacher": HEAD},
        {"mlp.0.weight": torch.zeros(2), "last_layer.weight_v": torch.zeros(2)},
        {"teacher": {"dino_head.mlp.0.weight": torch.zeros(2), "ibot_head.mlp.0.weight": torch.zeros(2)}},
    ],
)
def test_heads_alone_are_told(content: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no backbone, only 2 weights of heads"):
        load_backbone(saved(content, tmp_path))


def test_other_networks_must_be_named(draw_vit: Draw, tmp_path: Path) -> None:
    classifier = draw_vit() | {"head.weight": torch.zeros(10, 48), "head.bias": torch.zeros(10)}
    with pytest.raises(CheckpointError, match=r"is a ViT, but not of DINO, iBOT.* name it: timm:NAME@"):
        load_backbone(saved(classifier, tmp_path))
    with pytest.raises(CheckpointError, match=r"is of another family \(2 weights: conv1.weight, fc.bias\)"):
        load_backbone(saved({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, tmp_path))


def test_timms_own_checkpoints_name_their_architecture(tmp_path: Path) -> None:
    import timm

    network = timm.create_model("test_resnet", num_classes=7)
    content = {"arch": "test_resnet", "state_dict": network.state_dict(), "args": argparse.Namespace(lr=1)}
    backbone = load_backbone(saved(content, tmp_path))
    assert (backbone.family, backbone.arch, backbone.dim) == ("timm", "test_resnet", 96)
    del content["arch"]
    spec = saved(content, tmp_path)
    assert load_backbone(spec, arch="test_resnet").weights_sha256 == backbone.weights_sha256
    with pytest.raises(ConfigError, match="--num-heads changes nothing"):
        load_backbone(spec, arch="test_resnet", num_heads=3)


def test_the_student_of_a_file_with_a_teacher_only(draw_vit: Draw, tmp_path: Path) -> None:
    spec = saved({"teacher": under("backbone.", draw_vit()) | HEAD, "epoch": 3}, tmp_path)
    with pytest.raises(CheckpointError, match=r"student is asked for, and .* holds only the teacher; .*epoch"):
        load_backbone(spec, checkpoint_key="student", num_heads=3)
