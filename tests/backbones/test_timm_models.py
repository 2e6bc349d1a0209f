import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from patchssl.backbones import as_backbone, load_backbone, remote
from patchssl.backbones.protocol import fresh_weights, hash_weights
from patchssl.errors import CheckpointError, ConfigError

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
    # Timm's data configuration: crop_pct 0.9 and the colours of its own training.
    assert (backbone.preprocess.image_px, backbone.preprocess.resize_px) == (224, 248)
    assert backbone.preprocess.mean == (0.5, 0.5, 0.5)
    assert (backbone.num_heads, backbone.num_registers, backbone.positions, backbone.load) == (3, 0, "timm", None)
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
        ("timm:vit_small_patch16_224.dyno@random", "Invalid pretrained tag .*; it knows .*vit_small_patch16_224.dino"),
    ],
)
def test_names_that_timm_does_not_know_are_refused(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_backbone(spec)


def test_options_that_change_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--arch, --num-heads changes nothing about .*: NAME is the architecture"):
        load_backbone("timm:test_vit@random", arch="test_vit", num_heads=2)
    with pytest.raises(ConfigError, match=r"--checkpoint-key changes nothing about .*: it names no file"):
        load_backbone("timm:test_vit@random", checkpoint_key="student")


def pixels(side: int, num: int = 2) -> torch.Tensor:
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(3))


# One of every way in which networks of timm give their features.
POOLED = {
    "test_resnet": (96, (5, 5), "head"),
    "test_convnext2": (128, (5, 5), "head"),
    "test_efficientnet": (256, (5, 5), "head"),
    "test_mambaout": (256, (5, 5), "head"),
    "mobilenetv3_small_050": (1024, (7, 7), "head"),
    "efficientvim_m1": (960, (4, 4), "head"),
    "pit_ti_224": (256, (7, 7), "head"),
    "levit_128s": (384, (4, 4), "head"),
    "test_vit_relpos": (96, (10, 10), "mean"),
}


@pytest.mark.parametrize("name", POOLED)
def test_networks_without_a_class_token_give_their_pooled_feature_and_map(name: str) -> None:
    backbone = load_backbone(f"timm:{name}@random")
    dim, grid, pooling = POOLED[name]
    assert (backbone.dim, backbone.pooling, backbone.num_blocks) == (dim, pooling, 1)
    image = pixels(backbone.preprocess.image_px)
    tokens = backbone.forward(image)
    assert (tokens.cls.shape, tokens.grid) == ((2, dim), grid)
    assert tokens.patches.shape[:2] == (2, grid[0] * grid[1])
    # What the network itself gives its classifier.
    torch.testing.assert_close(tokens.cls, backbone.network(image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.forward(image[1:]).cls, tokens.cls[1:], rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="has no class token, so there is no attention map"):
        backbone.attention(image)
    with pytest.raises(ConfigError, match=r"2 last blocks of .* allowed: 1 to 1"):
        backbone.last_blocks(image, 2)


@pytest.mark.parametrize("name", ["test_resnet", "swin_tiny_patch4_window7_224"])
def test_patches_are_the_map_that_is_pooled(name: str) -> None:
    # Convolutions in one network, channels last in the other: the mean of the patches is the pooled feature.
    tokens = load_backbone(f"timm:{name}@random").at_size(64).forward(pixels(64, 1))
    assert tokens.grid == (2, 2)
    torch.testing.assert_close(tokens.patches.mean(1), tokens.cls, rtol=1e-4, atol=1e-5)


def test_attention_pooled_vits_as_siglip() -> None:
    network: Any = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=1,
        num_heads=3,
        class_token=False,
        global_pool="map",
        num_classes=5,
    )
    network.pretrained_cfg = {"architecture": "siglip", "input_size": (3, 32, 32), "fixed_input_size": True}
    backbone = as_backbone(network, spec="siglip")
    assert (backbone.pooling, backbone.num_blocks, backbone.dim) == ("attention", 1, 48)
    tokens = backbone.forward(pixels(32))
    own = network.eval().forward_features(pixels(32))
    torch.testing.assert_close(tokens.patches, own)
    torch.testing.assert_close(tokens.cls, network.forward_head(own, pre_logits=True))


@pytest.mark.parametrize(("pool", "pooling"), [("avg", "mean"), ("map", "attention"), ("token", "cls")])
def test_a_class_token_counts_only_where_the_network_ends_in_it(pool: str, pooling: str) -> None:
    # EVA-02 averages patches before its norm, the perception encoder pools by attention; both have a class token.
    network: Any = Eva(
        img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, global_pool=pool, num_reg_tokens=2, num_classes=5
    )
    network.pretrained_cfg = {"architecture": "eva", "input_size": (3, 32, 32), "fixed_input_size": True}
    backbone = as_backbone(network, spec="eva")
    assert (backbone.pooling, backbone.num_blocks) == (pooling, 2 if pool == "token" else 1)
    tokens, sequence = backbone.forward(pixels(32)), network.eval().forward_features(pixels(32))
    torch.testing.assert_close(tokens.patches, sequence[:, 3:])
    torch.testing.assert_close(tokens.cls, network.forward_head(sequence, pre_logits=True))


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224"])
def test_vits_give_tokens_blocks_and_attention(name: str) -> None:
    backbone = load_backbone(f"timm:{name}@random").at_size(96)
    first, last = backbone.last_blocks(pixels(96), 2)
    network: Any = backbone.network
    sequence = network.forward_features(pixels(96))
    torch.testing.assert_close(last.cls, sequence[:, 0])
    torch.testing.assert_close(last.patches, sequence[:, network.num_prefix_tokens :])
    assert last.grid[0] * backbone.patch_px == 96
    assert not torch.equal(first.cls, last.cls)
    num = network.num_prefix_tokens + last.patches.shape[1]
    attention = backbone.attention(pixels(96))
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, backbone.num_heads or 0, num))


def saved(network: Any, folder: Path, **more: Any) -> str:
    torch.save({**more, "state_dict": network.state_dict()}, folder / "weights.pth")
    return str(folder / "weights.pth")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_mambaout"])
def test_weights_of_a_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = timm.create_model(name, num_classes=9).eval()
    backbone = load_backbone(f"timm:{name}@{saved(network, tmp_path)}")
    image = pixels(160)
    expected = network.forward_head(network.forward_features(image), pre_logits=True)
    torch.testing.assert_close(backbone.forward(image).cls, expected)
    assert backbone.load is not None
    assert (backbone.load.missing, backbone.load.unexpected, backbone.load.resampled) == ((), (), ())
    assert {key.rpartition(".")[2] for key in backbone.load.dropped} == {"weight", "bias"}
    assert len(backbone.load.dropped) == 2


def test_files_of_another_network_are_refused(tmp_path: Path) -> None:
    spec = saved(timm.create_model("test_resnet", num_classes=0), tmp_path)
    with pytest.raises(CheckpointError, match=r"test_vit is not the architecture|does not fit timm:test_vit"):
        load_backbone(f"timm:test_vit@{spec}")
    narrow = saved(timm.create_model("test_vit", num_classes=0, embed_dim=32), tmp_path)
    with pytest.raises(CheckpointError, match=r"of another shape \(blocks.0.attn.proj.bias: 32 in the file, 64 here"):
        load_backbone(f"timm:test_vit@{narrow}")
    shallow = saved(timm.create_model("test_vit", num_classes=0, depth=5), tmp_path)
    with pytest.raises(CheckpointError, match=r"12 missing \(blocks.5."):
        load_backbone(f"timm:test_vit@{shallow}")
    deep = saved(timm.create_model("test_vit", num_classes=0, depth=7), tmp_path)
    with pytest.raises(CheckpointError, match=r"12 unexpected \(blocks.6."):
        load_backbone(f"timm:test_vit@{deep}")
    assert load_backbone(f"timm:test_vit@{deep}", allow_partial=True).facts()["load"]["unexpected"] == 12


def test_positions_of_another_grid_are_resampled_and_that_is_said(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=0, img_size=64)
    backbone = load_backbone(f"timm:test_vit@{saved(network, tmp_path)}")
    assert backbone.load is not None
    assert backbone.load.resampled == ("pos_embed",)
    assert backbone.facts()["load"]["resampled"] == 1


def test_student_and_teacher_of_a_file(tmp_path: Path) -> None:
    networks = [timm.create_model("test_vit", num_classes=0) for _ in range(2)]
    content = {"teacher": networks[0].state_dict(), "student": networks[1].state_dict()}
    torch.save(content, tmp_path / "w.pth")
    spec = f"timm:test_vit@{tmp_path / 'w.pth'}"
    teacher, student = load_backbone(spec), load_backbone(spec, checkpoint_key="student")
    assert (teacher.checkpoint_key, student.checkpoint_key) == ("teacher", "student")
    assert teacher.weights_sha256 == hash_weights(networks[0].state_dict())
    assert student.weights_sha256 == hash_weights(networks[1].state_dict())


def test_pretrained_weights_without_a_network_are_told_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # A port where nobody listens stands for a hub that cannot be reached.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"neither in the cache nor .* give timm:test_vit@FILE"):
        load_backbone("timm:test_vit")
    assert time.perf_counter() - start < 5
    assert capfd.readouterr() == ("", "")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(CheckpointError, match="timm has no pretrained weights of 'vit_giant_patch14_224'"):
        load_backbone("timm:vit_giant_patch14_224")


def test_pretrained_weights_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    expected = timm.create_model("test_vit", num_classes=0)
    create = timm.create_model

    def cached(name: str, *, pretrained: bool, **settings: Any) -> Any:
        network = create(name, **settings)
        if pretrained:
            network.load_state_dict(expected.state_dict())
        return network

    monkeypatch.setattr(timm, "create_model", cached)
    monkeypatch.setattr(remote, "is_reachable", lambda url: False)
    backbone = load_backbone("timm:test_vit")
    assert backbone.weights_sha256 == hash_weights(expected.state_dict())
    assert backbone.load is not None
    assert len(backbone.load.matched) == len(expected.state_dict())


@pytest.mark.parametrize("size", [0, 8, 33])
def test_sizes_that_are_no_multiple_of_the_patch_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"image size {size} is not a multiple of the patch size 16 .* and \d+"):
        load_backbone(TINY).at_size(size)
