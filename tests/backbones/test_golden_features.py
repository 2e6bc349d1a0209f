"""Features equal those of the original projects, at every size that they were written down for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchssl.backbones import Backbone, load_backbone

Golden = dict[str, Tensor]


def load(golden: Path, name: str, folder: Path) -> tuple[Backbone, Golden]:
    with np.load(golden / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    weights = {key.removeprefix("state."): value for key, value in arrays.items() if key.startswith("state.")}
    torch.save(weights, folder / "weights.pth")
    return load_backbone(str(folder / "weights.pth"), num_heads=3), arrays


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", range(4))
def test_dino(size: int, golden: Path, tmp_path: Path) -> None:
    backbone, arrays = load(golden, "dino_vit", tmp_path)
    assert (backbone.family, backbone.positions) == ("dino", "dino")
    pixels = arrays[f"input{size}"]
    before, last = backbone.last_blocks(pixels, 2)
    for tokens, name in ((before, "second_last_tokens"), (last, "last_tokens")):
        close(torch.cat([tokens.cls[:, None], tokens.patches], dim=1), arrays[f"{name}{size}"])
    close(backbone.forward(pixels).cls, arrays[f"cls{size}"])
    close(backbone.attention(pixels), arrays[f"attention{size}"])
    assert last.grid == (pixels.shape[2] // 8, pixels.shape[3] // 8)


@pytest.mark.parametrize("size", range(3))
@pytest.mark.parametrize(("registers", "positions"), [(0, "dino"), (4, "dinov2-reg")])
def test_dinov2(size: int, registers: int, positions: str, golden: Path, tmp_path: Path) -> None:
    backbone, arrays = load(golden, f"dinov2_vit_reg{registers}", tmp_path)
    assert (backbone.family, backbone.positions, backbone.num_registers) == ("dinov2", positions, registers)
    pixels = arrays[f"input{size}"]
    tokens = backbone.forward(pixels)
    close(tokens.cls, arrays[f"cls{size}"])
    close(tokens.patches, arrays[f"patch{size}"])
    assert tokens.grid == (pixels.shape[2] // 14, pixels.shape[3] // 14)
    num_tokens = 1 + registers + tokens.patches.shape[1]
    attention = backbone.attention(pixels)
    assert attention.shape == (2, 3, num_tokens, num_tokens)
    close(attention.sum(-1), torch.ones(2, 3, num_tokens))


def test_the_ways_to_resample_positions_do_not_give_the_same_features(golden: Path, tmp_path: Path) -> None:
    backbone, arrays = load(golden, "dinov2_vit_reg4", tmp_path)
    network: Any = backbone.network
    network.resampling = "dino"
    close(backbone.forward(arrays["input0"]).cls, arrays["cls0"])
    assert (backbone.forward(arrays["input1"]).cls - arrays["cls1"]).abs().max() > 1e-3


@pytest.mark.parametrize("key", ["teacher", "student", None])
def test_both_networks_of_a_training_checkpoint(key: str | None, golden: Path) -> None:
    with np.load(golden / "dino_training_checkpoint_outputs.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in ("input", "teacher_cls", "student_cls")}
    backbone = load_backbone(str(golden / "dino_training_checkpoint.pth"), checkpoint_key=key)
    close(backbone.forward(arrays["input"]).cls, arrays[f"{key or 'teacher'}_cls"])
    assert (backbone.checkpoint_key, backbone.num_heads) == (key or "teacher", 3)
    assert backbone.load is not None
    assert (len(backbone.load.matched), len(backbone.load.dropped), backbone.load.partial) == (30, 8, False)
    assert all("head." in name for name in backbone.load.dropped)
