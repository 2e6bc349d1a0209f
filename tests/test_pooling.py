from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from patchssl.backbones import load_backbone
from patchssl.errors import ConfigError
from patchssl.pooling import GEM_POWER, Part, concatenate, gem, num_blocks_of, parse_tokens, pool
from patchssl.structs import Tokens

GOLDEN = Path(__file__).parent / "golden" / "gem.npz"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cls", [("cls", 1)]),
        ("mean", [("mean", 1)]),
        ("gem", [("gem", 1)]),
        ("patches", [("patches", 1)]),
        ("cls:1", [("cls", 1)]),
        ("cls:3", [("cls", 3), ("cls", 2), ("cls", 1)]),
        ("cls:2+mean", [("cls", 2), ("cls", 1), ("mean", 1)]),
        ("cls+gem", [("cls", 1), ("gem", 1)]),
    ],
)
def test_a_choice_of_tokens_is_read_in_the_order_of_the_descriptor(text: str, parts: list[tuple[str, int]]) -> None:
    found = parse_tokens(text)
    assert found == tuple(Part(*part) for part in parts)
    assert num_blocks_of(found) == max(block for _, block in parts)


@pytest.mark.parametrize("text", ["", "cls:0", "cls:", "cls+patches", "mean:2", "patches:2", "CLS", "cls+", "cls cls"])
def test_other_choices_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed: cls, cls:N"):
        parse_tokens(text)


def test_gem_equals_the_reference() -> None:
    with np.load(GOLDEN, allow_pickle=False) as file:
        tokens = torch.from_numpy(file["tokens"])
        blocks = [Tokens(tokens[:, 0], tokens[:, 1:], tuple(file["grid"].tolist()))]
        assert float(file["p"]) == GEM_POWER
        expected = torch.from_numpy(file["descriptor"])
    found = concatenate([pool(blocks, part) for part in parse_tokens("cls+gem")])
    assert_close(found, expected, rtol=0, atol=1e-5)


def test_gem_and_mean_by_hand() -> None:
    # Two patches of two values; -3 counts as 1e-6.
    patches = torch.tensor([[[1.0, -3.0], [2.0, 2.0]]])
    power_mean = [((1 + 16) / 2) ** 0.25, (16 / 2) ** 0.25]
    assert_close(gem(patches), torch.tensor([power_mean]), rtol=0, atol=1e-6)
    assert_close(gem(patches, power=1.0), torch.tensor([[1.5, 1.0]]), rtol=0, atol=1e-6)
    tokens = [Tokens(torch.tensor([[9.0, 9.0]]), patches, (1, 2))]
    assert_close(pool(tokens, Part("mean", 1)), torch.tensor([[1.5, -0.5]]))
    assert pool(tokens, Part("patches", 1)) is patches
    assert concatenate([torch.zeros(2, 3), torch.ones(2, 1)]).tolist() == [[0, 0, 0, 1], [0, 0, 0, 1]]


def test_gem_rises_from_the_mean_to_the_maximum() -> None:
    patches = torch.rand(4, 7, 5, generator=torch.Generator().manual_seed(0)) + 0.1
    rising = [patches.mean(1), *(gem(patches, power) for power in (1.0, 2.0, 4.0, 8.0)), patches.amax(1)]
    for lower, higher in pairwise(rising):
        assert (higher - lower).min() > -1e-6
    assert_close(gem(patches.double() * 0 + patches, 60.0), patches.amax(1), rtol=0.04, atol=0)
    assert (gem(patches, 60.0) - patches.amax(1)).abs().max() < (gem(patches, 4.0) - patches.amax(1)).abs().max()


def test_equal_patches_are_their_own_mean() -> None:
    patch = torch.rand(3, 1, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    tokens = [Tokens(patch[:, 0], patch.expand(3, 5, 6), (1, 5))]
    for kind in ("cls", "mean", "gem"):
        assert_close(pool(tokens, Part(kind, 1)), patch[:, 0], rtol=1e-6, atol=1e-6)


def test_registers_are_never_among_the_patches() -> None:
    backbone = load_backbone("timm:vit_small_patch14_reg4_dinov2@random").at_size(28)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    tokens = backbone.forward(pixels)
    network: Any = backbone.network
    whole = network.forward_features(pixels)  # (2, 1 + 4 + 4, 384)
    assert whole.shape == (2, 9, 384)
    assert tokens.grid == (2, 2)
    assert_close(tokens.cls, whole[:, 0], rtol=0, atol=2e-5)
    assert_close(tokens.patches, whole[:, 5:], rtol=0, atol=2e-5)
    mean = pool([tokens], Part("mean", 1))
    assert_close(mean, whole[:, 5:].mean(1), rtol=0, atol=2e-5)
    assert (mean - whole[:, 1:].mean(1)).abs().max() > 1e-2


def test_class_tokens_of_the_last_blocks_come_earliest_first() -> None:
    backbone = load_backbone("timm:vit_tiny_patch16_224@random").at_size(32)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    parts = parse_tokens("cls:4")
    found = concatenate([pool(backbone.last_blocks(pixels, num_blocks_of(parts)), part) for part in parts])
    # All twelve blocks, in the order of the network.
    network: Any = backbone.network
    every = network.forward_intermediates(
        pixels, norm=True, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    expected = torch.cat([prefix[:, 0] for _, prefix in every[-4:]], dim=1)
    assert_close(found, expected, rtol=0, atol=2e-5)
    assert_close(found[:, -192:], backbone.forward(pixels).cls, rtol=0, atol=2e-5)
    assert (found[:, :192] - found[:, -192:]).abs().max() > 1e-2
