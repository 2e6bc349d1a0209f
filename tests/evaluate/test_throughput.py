import itertools
import time

import pytest
import torch
from torch import Tensor, nn

from patchssl.backbones import Backbone, Preprocess, load_backbone
from patchssl.backbones.protocol import fresh_weights
from patchssl.backbones.vit import ViTReader, build_vit, use_plain_attention
from patchssl.config import ModelConfig
from patchssl.errors import ConfigError
from patchssl.evaluate.throughput import images_per_s, measure_cost, num_flops
from patchssl.structs import Tokens

MULTIPLY_ADD = 2


class Pooling:
    """Runs any module that makes a map (B, D, H, W) or tokens (B, N, D)."""

    def num_blocks(self, network: nn.Module) -> int:
        return 1

    def last_blocks(self, network: nn.Module, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        found = network(pixels)
        patches = found.flatten(2).mT if found.ndim == 4 else found
        return (Tokens(patches.mean(1), patches, (1, patches.shape[1])),)

    def attention(self, network: nn.Module, pixels: Tensor) -> Tensor:
        raise ConfigError("none")


def backbone_of(network: nn.Module, side: int, dim: int) -> Backbone:
    preprocess = Preprocess(image_px=side, resize_px=side)
    return Backbone.of(
        network, Pooling(), spec="t", family="test", arch="t", dim=dim, patch_px=1, preprocess=preprocess
    )


class NativeAttention(nn.Module):
    """Torch's own attention layer, which has a fast path of its own, over 16 cells of an image of 8 x 8 px."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, pixels: Tensor) -> Tensor:
        cells = nn.functional.pixel_unshuffle(pixels, 2).flatten(2).mT  # (B, 16, 12)
        attended: Tensor = self.layer(cells, cells, cells, need_weights=False)[0]
        return attended


def test_a_convolution_counted_by_hand() -> None:
    # 3 → 5 channels, 3 x 3 weights, 8 x 8 px with stride 2 and padding 1 → 4 x 4 positions.
    network = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.ReLU())
    assert num_flops(backbone_of(network, side=8, dim=5)) == MULTIPLY_ADD * (4 * 4) * 5 * (3 * 3 * 3)


@pytest.mark.parametrize("fused", [True, False])
def test_a_vision_transformer_counted_by_hand(fused: bool) -> None:
    width, depth, patch, side = 32, 3, 8, 32
    model = ModelConfig(arch="vit_tiny_patch16_224", patch_size=patch, width=width, depth=depth, num_heads=2)
    with fresh_weights(0):
        network = build_vit(model, side)
    if not fused:
        use_plain_attention(network)
    preprocess = Preprocess(image_px=side, resize_px=side)
    backbone = Backbone.of(
        network, ViTReader(), spec="t", family="test", arch="t", dim=width, patch_px=patch, preprocess=preprocess
    )
    patches = (side // patch) ** 2
    tokens = patches + 1
    embedding = patches * (3 * patch * patch) * width
    projections = tokens * width * (3 * width + width + 2 * 4 * width)
    attention = 2 * tokens * tokens * width
    assert num_flops(backbone) == MULTIPLY_ADD * (embedding + depth * (projections + attention))


def test_attention_of_torch_counts_and_its_fast_path_is_restored() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    found = num_flops(backbone_of(NativeAttention(), side=8, dim=12))
    assert found == MULTIPLY_ADD * (16 * 12 * (3 * 12 + 12) + 2 * 16 * 16 * 12)
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_floors_multiply_nothing() -> None:
    assert num_flops(load_backbone("floor:raw-pixels")) == 0


class Sleeping(nn.Module):
    """Takes longer and longer for a pass: 0.1, 0.01, 0.02, 0.03, 0.04 … s."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.batches: list[int] = []
        self.clock = 0.0
        self.seconds = itertools.chain([0.1], (index / 100 for index in itertools.count(1)))

    def forward(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        self.clock += next(self.seconds)
        return pixels * self.scale


@pytest.mark.parametrize(("min_s", "repeats", "median_s"), [(0.0, 3, 0.02), (0.15, 5, 0.03)])
def test_the_median_after_one_warm_up(
    min_s: float, repeats: int, median_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Sleeping()
    monkeypatch.setattr("patchssl.evaluate.throughput.time.perf_counter", lambda: network.clock)
    found = images_per_s(backbone_of(network, side=4, dim=3), batch_size=6, min_s=min_s)
    assert found == pytest.approx(6 / median_s)
    assert network.batches == [6] * (1 + repeats)


def test_the_cost_of_a_backbone_as_a_row_keeps_it() -> None:
    backbone = load_backbone("timm:vit_tiny_patch16_224@random").at_size(32)
    since = time.perf_counter()
    cost = measure_cost(backbone, batch_size=2, precision="bf16", min_s=0.05)
    assert time.perf_counter() - since > 0.05
    details = cost.details()
    assert details == {
        "gflops": round(num_flops(backbone) / 1e9, 4),
        "images_per_s": cost.images_per_s,
        "cost": {"image_px": 32, "batch_size": 2, "precision": "bf16"},
    }
    assert cost.images_per_s > 0
    # A multiply-add for each weight of the blocks and each of 5 tokens, and little else.
    assert details["gflops"] == pytest.approx(2 * 5 * 5.3e6 / 1e9, rel=0.1)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fp8' is unknown"):
        measure_cost(load_backbone("floor:mean-colour"), batch_size=1, precision="fp8")
