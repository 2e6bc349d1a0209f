from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from patchssl.backbones import load_backbone
from patchssl.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("nano")
State = dict[str, Tensor]
_GATED = {"fc1_g": "w1", "fc1_x": "w2", "fc2": "w3"}


def network(arch: str) -> nn.Module:
    """A network of timm, none of whose weights is 0 or 1."""
    torch.manual_seed(0)
    made: nn.Module = timm.create_model(arch, num_classes=0).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def as_published(made: nn.Module, *, zero_bias: bool = False) -> State:
    """Its weights as DINOv3 names them."""
    state: State = {"mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(4)}
    weights = made.state_dict()
    gated = any("fc1_g" in name for name in weights)
    for name, value in weights.items():
        parts = ["storage_tokens"] if name == "reg_token" else name.split(".")
        if parts[-1].startswith("gamma_"):
            parts[-1:] = [f"ls{parts[-1][-1]}", "gamma"]
        if gated:
            parts = [_GATED.get(part, part) for part in parts]
        if parts[-1] == "q_bias":
            parts[-1:] = ["qkv", "bias"]
            # The keys' bias is masked; whatever it is, it must not count.
            value = torch.cat([value, torch.full_like(value, 9.0), weights[name.replace("q_bias", "v_bias")]])
        if parts[-1] != "v_bias":
            state[".".join(parts)] = value
    for block in range(2):
        if zero_bias:
            state[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(144)
        state[f"blocks.{block}.attn.qkv.bias_mask"] = torch.zeros(144)
    return state


def saved(state: Any, folder: Path) -> str:
    torch.save(state, folder / "dinov3.pth")
    return str(folder / "dinov3.pth")


@pytest.mark.parametrize(
    ("arch", "zero_bias"),
    [
        ("vit_nano_patch16_dinov3", False),
        ("vit_nano_patch16_dinov3", True),
        ("vit_nano_patch16_dinov3_qkvb", False),
        ("vit_nano_plus_patch16_dinov3", False),
    ],
)
def test_family_and_architecture_are_found_and_features_are_timms(arch: str, zero_bias: bool, tmp_path: Path) -> None:
    made = network(arch)
    spec = saved(as_published(made, zero_bias=zero_bias), tmp_path)
    backbone = load_backbone(spec)
    assert (backbone.family, backbone.arch, backbone.positions) == ("dinov3", arch, "rope")
    assert (backbone.dim, backbone.patch_px, backbone.num_heads, backbone.num_registers) == (48, 16, 3, 4)
    assert (backbone.preprocess.image_px, backbone.preprocess.resize_px) == (224, 256)
    assert backbone.load is not None
    assert {"mask_token", "rope_embed.periods", "blocks.0.attn.qkv.bias_mask"} <= set(backbone.load.dropped)
    pixels = torch.randn(2, 3, 64, 32)
    tokens, sequence = backbone.forward(pixels), made.forward_features(pixels)  # type: ignore[operator]
    assert sequence.shape == (2, 1 + 4 + 8, 48)
    torch.testing.assert_close(tokens.cls, sequence[:, 0])
    torch.testing.assert_close(tokens.patches, sequence[:, 5:])
    assert tokens.grid == (4, 2)
    attention = backbone.attention(pixels)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 13))
    named = load_backbone(f"timm:{arch}@{spec}")
    assert (named.family, named.weights_sha256) == ("timm", backbone.weights_sha256)
    assert named.pooling == "cls"


def test_a_training_checkpoint(tmp_path: Path) -> None:
    state = as_published(network("vit_nano_patch16_dinov3"))
    teacher = {f"backbone.{name}": value for name, value in state.items()} | {"dino_head.mlp.0.weight": torch.zeros(1)}
    backbone = load_backbone(saved({"teacher": teacher}, tmp_path))
    assert (backbone.family, backbone.checkpoint_key) == ("dinov3", "teacher")
    assert backbone.load is not None
    assert "dino_head.mlp.0.weight" in backbone.load.dropped


def test_biases_are_not_lost_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = saved(as_published(network("vit_nano_patch16_dinov3_qkvb")), tmp_path)
    with pytest.raises(CheckpointError, match=r"2 unexpected \(blocks.0.attn.qkv.bias.* take .*_qkvb"):
        load_backbone(f"timm:vit_nano_patch16_dinov3@{spec}")
    assert capsys.readouterr().out == ""


def test_other_widths_depths_and_missing_weights_are_refused(tmp_path: Path) -> None:
    state = as_published(network("vit_nano_patch16_dinov3"))
    lacking = {name: value for name, value in state.items() if name != "blocks.1.norm2.weight"}
    with pytest.raises(CheckpointError, match="of DINOv3 with width 48, 2 blocks and patches of 16 px, and none of"):
        load_backbone(saved(lacking, tmp_path))
    with pytest.raises(CheckpointError, match=r"1 missing \(blocks.1.norm2.weight\)"):
        load_backbone(saved(lacking, tmp_path), arch="vit_nano_patch16_dinov3")
    shallow = {name: value for name, value in state.items() if not name.startswith("blocks.1.")}
    with pytest.raises(CheckpointError, match="width 48, 1 blocks"):
        load_backbone(saved(shallow, tmp_path))
    without = {name: value for name, value in state.items() if name != "storage_tokens"}
    with pytest.raises(CheckpointError, match="has no registers and timm:vit_nano_patch16_dinov3 has 4"):
        load_backbone(f"timm:vit_nano_patch16_dinov3@{saved(without, tmp_path)}")
