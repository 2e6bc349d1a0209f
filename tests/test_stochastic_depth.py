"""Stochastic depth: how often a branch is dropped, what dropping does, and that samples alone decide."""

from typing import Any

import pytest
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from patchssl.backbones.vit import build_vit
from patchssl.config import ModelConfig
from patchssl.draws import uniforms
from patchssl.network import Network
from patchssl.recipes import parse_config
from patchssl.stochastic_depth import DroppedBranch, draw_factors, dropped_branches, dropping, hand_in_factors
from patchssl.structs import Boxes, SampleKeys, ViewGroup

RATES = (0.1, 0.25, 0.5, 0.9)


def keys_of(*index: int, epoch: int = 0) -> SampleKeys:
    return SampleKeys(torch.full((len(index),), epoch), torch.tensor(index))


def groups_of(num_images: int, *nums_views: int) -> list[ViewGroup]:
    """Groups of views without content."""
    boxes = [
        Boxes(torch.zeros(num_images, num, 4), torch.zeros(num_images, num, dtype=torch.bool)) for num in nums_views
    ]
    return [ViewGroup(torch.zeros(num_images, num, 3, 8, 8), box) for num, box in zip(nums_views, boxes, strict=True)]


def vit(drop_path: float, arch: str = "vit_tiny_patch16_224", depth: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_vit(
            ModelConfig(arch=arch, width=24, num_heads=2, depth=depth, patch_size=8), 16, drop_path=drop_path
        )


def test_factors_by_hand() -> None:
    keys = keys_of(7, 3, epoch=2)
    first, second = draw_factors(RATES, groups_of(2, 2, 3), keys, seed=5) or ()
    assert (first.shape, second.shape) == ((4, 4), (6, 4))
    for row in range(4):
        image, view = divmod(row, 2)
        drawn = uniforms(5, keys[[image]], (1 << 17) + view, 4)[0].tolist()
        by_hand = [0.0 if number >= 1 - rate else 1 / (1 - rate) for number, rate in zip(drawn, RATES, strict=True)]
        assert first[row].tolist() == pytest.approx(by_hand)
    # The local views go on counting.
    drawn = uniforms(5, keys[[1]], (1 << 17) + 2 + 1, 4)[0].tolist()
    by_hand = [0.0 if number >= 1 - rate else 1 / (1 - rate) for number, rate in zip(drawn, RATES, strict=True)]
    assert second[3 + 1].tolist() == pytest.approx(by_hand)


def test_each_branch_is_dropped_at_its_rate_and_the_mean_stays() -> None:
    num = 20_000
    (factors,) = draw_factors(RATES, groups_of(num, 2), keys_of(*range(num)), seed=0) or ()
    rates = torch.tensor(RATES)
    # 5 standard deviations of a mean of 40,000.
    spread = 5 * (rates * (1 - rates) / (2 * num)).sqrt()
    assert ((factors == 0).float().mean(0) - rates).abs().le(spread).all()
    assert (factors.mean(0) - 1).abs().le(spread / (1 - rates)).all()
    kept = (factors > 0).double()
    # Neither views nor branches follow each other.
    views = kept.view(num, 2, 4)
    assert torch.corrcoef(torch.cat([views[:, 0], views[:, 1]], 1).T).sub(torch.eye(8)).abs().max() < 0.04


def test_order_parts_and_other_samples_of_a_batch_change_nothing() -> None:
    whole = draw_factors(RATES, groups_of(4, 2, 3), keys_of(9, 4, 6, 1), seed=1) or ()
    turned = draw_factors(RATES, groups_of(4, 2, 3), keys_of(1, 6, 4, 9), seed=1) or ()
    alone = draw_factors(RATES, groups_of(1, 2, 3), keys_of(6), seed=1) or ()
    for group, num_views in enumerate((2, 3)):
        of_images = whole[group].unflatten(0, (4, num_views))
        assert of_images.flip(0).equal(turned[group].unflatten(0, (4, num_views)))
        assert of_images[2].equal(alone[group])
    for seed, epoch in ((2, 0), (1, 1)):
        other = draw_factors(RATES, groups_of(4, 2, 3), keys_of(9, 4, 6, 1, epoch=epoch), seed=seed) or ()
        assert not torch.cat(other).equal(torch.cat(whole))


def test_nothing_is_drawn_where_no_branch_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr("patchssl.stochastic_depth.uniforms", never)
    assert draw_factors([], groups_of(2, 2), keys_of(0, 1), seed=0) is None
    assert dropped_branches(vit(0.0)) == ()


@pytest.mark.parametrize(
    ("arch", "rates"),
    [
        ("vit_tiny_patch16_224", [0.15, 0.15, 0.3, 0.3]),
        # Blocks with one branch for attention and MLP, and with two of each.
        ("vit_base_patch16_xp_224", [0.15, 0.3]),
        ("vit_small_patch16_18x2_224", [0.15] * 4 + [0.3] * 4),
    ],
)
def test_every_branch_of_timm_is_replaced_and_keeps_its_rate(arch: str, rates: list[float]) -> None:
    network = vit(0.3, arch)
    before = list(network.state_dict())
    hand_in_factors(network)
    assert [branch.rate for branch in dropped_branches(network)] == pytest.approx(rates)
    assert not any(isinstance(module, DropPath) for module in network.modules())
    assert list(network.state_dict()) == before


def residual_by_hand(block: Any, tokens: Tensor, attention: float, mlp: float) -> Tensor:
    tokens = tokens + attention * block.attn(block.norm1(tokens))
    result: Tensor = tokens + mlp * block.mlp(block.norm2(tokens))
    return result


def test_a_block_by_hand_and_a_dropped_branch_is_the_identity() -> None:
    network = vit(0.5)
    hand_in_factors(network)
    block: Any = network.blocks[2]  # type: ignore[index]
    branches = dropped_branches(block)
    assert [branch.rate for branch in branches] == [0.5, 0.5]
    tokens = torch.randn(4, 5, 24, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    with dropping(branches, factors.unbind(1)):
        found = block(tokens)
    assert found[0].equal(tokens[0])
    for image in range(4):
        by_hand = residual_by_hand(block, tokens[image : image + 1], *factors[image].tolist())
        torch.testing.assert_close(found[image : image + 1], by_hand, rtol=1e-5, atol=1e-5)
    assert all(branch.factors is None for branch in branches)


def test_training_without_factors_is_refused_and_an_evaluated_network_drops_nothing() -> None:
    network = vit(0.5)
    hand_in_factors(network)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        ValueError, match=r"a branch of rate 0\.25 is trained without factors; hand them in, or call ev"
    ):
        network(pixels)
    assert network.eval()(pixels).equal(vit(0.0).eval()(pixels))
    branch = DroppedBranch(0.5)
    with dropping([branch], [torch.zeros(0)]):
        assert branch(torch.zeros(0, 5, 24)).shape == (0, 5, 24)


def test_factors_of_a_group_reach_its_views_and_no_others() -> None:
    model = {"arch": "vit_tiny_patch16_224", "patch_size": 8, "width": 24, "depth": 3, "num_heads": 2, "drop_path": 0.5}
    heads = {"head_hidden": 16, "head_bottleneck": 8, "cls_prototypes": 12, "patch_prototypes": 8}
    views = {"global_size": 16, "local_size": 8}
    network = Network(parse_config({"model": model | heads, "views": views}), drop_path=0.5)
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randn(num, 3, side, side, generator=generator) for num, side in ((4, 16), (6, 8))]
    factors = draw_factors([0.25, 0.25, 0.5, 0.5], groups_of(2, 2, 3), keys_of(0, 1), seed=0)
    assert factors is not None
    with torch.no_grad():
        together = network(pixels, None, factors)[2]
        alone = [network([images], None, [of_group])[2] for images, of_group in zip(pixels, factors, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone))
    everything = network(pixels, None, [torch.ones_like(of_group) for of_group in factors])[2]
    assert not torch.allclose(everything, together)
