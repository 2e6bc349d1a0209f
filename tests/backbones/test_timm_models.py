import pytest
import torch

from patchssl.backbones import load_backbone
from patchssl.backbones.protocol import fresh_weights, hash_weights
from patchssl.errors import ConfigError

TINY = "timm:vit_tiny_patch16_224@random"


def test_facts_and_tokens() -> None:
    backbone = load_backbone(TINY)
    assert (backbone.family, backbone.arch, backbone.dim, backbone.patch_px) == (
        "timm",
        "vit_tiny_patch16_224",
        192,
        16,
    )
    assert backbone.num_params == 5_524_416
    assert (backbone.preprocess.image_px, backbone.preprocess.resize_px) == (224, 256)
    assert backbone.preprocess.mean == (0.485, 0.456, 0.406)
    tokens = backbone.forward(torch.zeros(2, 3, 32, 48))
    assert (tokens.cls.shape, tokens.patches.shape, tokens.grid) == ((2, 192), (2, 6, 192), (2, 3))
    assert not backbone.network.training
    # After the final norm, whose fresh weights are 1 and 0.
    assert tokens.cls.mean(1).abs().max() < 1e-5


def test_registers_are_no_patches() -> None:
    tokens = load_backbone("timm:vit_small_patch14_reg4_dinov2@random").forward(torch.zeros(1, 3, 28, 28))
    assert tokens.patches.shape == (1, 4, 384)


def test_the_seed_decides_and_the_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    hashes = [load_backbone(TINY, seed=seed).weights_sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_hash_depends_on_names_values_types_and_not_on_order() -> None:
    state = {"a": torch.arange(3.0), "b": torch.tensor(2, dtype=torch.bfloat16)}
    first = hash_weights(state)
    assert first == hash_weights(dict(reversed(state.items())))
    others = [{**state, "a": torch.arange(3)}, {**state, "a": torch.zeros(3)}, {"c": state["a"], "b": state["b"]}]
    others.append({**state, "a": torch.arange(3.0)[None]})
    assert len({first, *map(hash_weights, others)}) == 5
    # Strides are no part of a value.
    assert first == hash_weights({**state, "a": torch.arange(0, 3, 0.5)[::2]})


def test_fresh_weights_restore_the_generator_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shape"), fresh_weights(3):
        torch.rand(5).view(4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "timm:vit_tiny_patch16_225@random",
            "knows no architecture 'vit_tiny_patch16_225'; the nearest are vit_tiny_p",
        ),
        ("timm:hf-hub:timm/vit_tiny@random", "knows no architecture"),
        ("timm:resnet18@random", "only ViTs with a class token"),
        ("timm:swin_tiny_patch4_window7_224@random", "only ViTs with a class token"),
        ("timm:vit_base_patch16_siglip_224@random", "only ViTs with a class token"),
    ],
)
def test_what_is_no_vit_of_timm_is_refused(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_backbone(spec)


@pytest.mark.parametrize("size", [0, 8, 33])
def test_sizes_that_are_no_multiple_of_the_patch_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"image size {size} is not a multiple of the patch size 16 .* and \d+"):
        load_backbone(TINY).at_size(size)
