import inspect
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from patchssl.backbones import load_backbone
from patchssl.backbones.preprocess import Preprocess
from patchssl.backbones.protocol import hash_weights
from patchssl.backbones.torchvision_models import _remap, names
from patchssl.backbones.torchvision_readers import PARTS, TorchvisionMapReader, TorchvisionViTReader, remove_classifier
from patchssl.errors import CheckpointError, ConfigError

# The smallest of every family; its side, D and grid there.
SMALL = {
    "alexnet": (64, 4096, (1, 1)),
    "convnext_tiny": (64, 768, (2, 2)),
    "densenet121": (64, 1024, (2, 2)),
    "efficientnet_b0": (64, 1280, (2, 2)),
    "googlenet": (64, 1024, (2, 2)),
    "inception_v3": (107, 2048, (2, 2)),
    "mnasnet0_5": (64, 1280, (2, 2)),
    "mobilenet_v2": (64, 1280, (2, 2)),
    "mobilenet_v3_small": (64, 1024, (2, 2)),
    "regnet_x_400mf": (64, 400, (2, 2)),
    "resnet18": (64, 512, (2, 2)),
    "shufflenet_v2_x0_5": (64, 1024, (2, 2)),
    "squeezenet1_1": (64, 512, (3, 3)),
    "swin_t": (64, 768, (2, 2)),
    "vgg11": (64, 4096, (2, 2)),
}
LAST_LAYERS = ("fc", "head", "heads", "classifier")


@pytest.fixture(autouse=True)
def quick_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw fresh weights from a plain normal distribution: the truncated one takes most of the time to build."""
    monkeypatch.setattr(
        nn.init, "trunc_normal_", lambda tensor, mean=0.0, std=1.0, *ends, **more: tensor.data.normal_(mean, std)
    )


def pixels(side: int, num: int = 2) -> torch.Tensor:
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(3))


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    settings = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    made: nn.Module = models.get_model(name, num_classes=5, **settings).eval()
    return made


def test_every_network_is_known_and_every_class_gives_a_feature_and_a_map() -> None:
    smallest: dict[str, tuple[float, str]] = {}
    for name in names():
        # Torchvision's builders say which class they return.
        kind = inspect.signature(models.get_model_builder(name)).return_annotation.__name__
        assert kind in PARTS, name
        num_params = models.get_model_weights(name).DEFAULT.meta["num_params"]
        smallest[kind] = min(smallest.get(kind, (num_params, name)), (num_params, name))
    assert smallest.keys() == PARTS.keys()
    # RegNets compute their widths with tensors, so that none is built without numbers; one of them runs below.
    for kind, (_, name) in smallest.items() - {("RegNet", smallest["RegNet"])}:
        settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        with torch.device("meta"):
            network: Any = models.get_model(name, **settings).eval()
        assert type(network).__name__ == kind
        remove_classifier(network)
        assert not any(len(value) == 1000 for key, value in network.named_parameters() if key.endswith("bias")), name
        reader: Any = TorchvisionViTReader() if kind == "VisionTransformer" else TorchvisionMapReader()
        (tokens,) = reader.last_blocks(network, torch.empty(1, 3, 224, 224, device="meta"), 1)
        assert (len(tokens.cls), tokens.cls.ndim) == (1, 2), name
        assert tokens.patches.shape[1] == tokens.grid[0] * tokens.grid[1], name


def penultimate(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """What the last linear layer is given, found without the reader."""
    kept: list[torch.Tensor] = []
    linear = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 5 and not name.lower().startswith("aux")
    ]
    linear[-1].register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    network(image)
    return kept[0]


@pytest.mark.parametrize("name", SMALL)
def test_one_of_every_family(name: str, tmp_path: Path) -> None:
    side, dim, grid = SMALL[name]
    network: Any = small(name)
    if name in ("googlenet", "inception_v3"):
        # As torchvision sets it for its own weights.
        network.transform_input = True
    torch.save(network.state_dict(), tmp_path / "w.pth")
    loaded = load_backbone(f"torchvision:{name}@{tmp_path / 'w.pth'}")
    backbone = loaded.at_size(side)
    assert (backbone.family, backbone.arch, backbone.dim, backbone.num_blocks) == ("torchvision", name, dim, 1)
    tokens = backbone.forward(pixels(side))
    assert (tokens.cls.shape, tokens.grid, len(tokens.patches)) == ((2, dim), grid, 2)
    assert tokens.patches.shape[1] == grid[0] * grid[1]
    if name != "squeezenet1_1":
        torch.testing.assert_close(tokens.cls, penultimate(network, pixels(side)))
    alone = torch.cat([backbone.forward(image[None]).cls for image in pixels(side)])
    assert (alone - tokens.cls).abs().max() < 1e-3 * tokens.cls.abs().max()
    assert backbone.load is not None
    assert (backbone.load.missing, backbone.load.unexpected, backbone.load.partial) == ((), (), False)
    assert all(key.startswith((*LAST_LAYERS, "aux", "Aux")) for key in backbone.load.dropped)
    assert backbone.num_params < sum(parameter.numel() for parameter in network.parameters())
    with pytest.raises(ConfigError, match="has no class token, so there is no attention map"):
        backbone.attention(pixels(side))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "swin_t", "squeezenet1_1"])
def test_patches_are_the_map_that_is_pooled(name: str) -> None:
    tokens = load_backbone(f"torchvision:{name}@random").forward(pixels(64))
    torch.testing.assert_close(tokens.patches.mean(1), tokens.cls, rtol=1e-4, atol=1e-5)


def nano_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchvision's ViT-B/16 a small one."""

    def build(*, weights: models.ViT_B_16_Weights | None = None, image_size: int = 224, **settings: Any) -> nn.Module:
        made: nn.Module = models.VisionTransformer(image_size, 16, 2, 3, 48, 96, **settings)
        return made

    build.__module__ = models.VisionTransformer.__module__
    monkeypatch.setitem(models._api.BUILTIN_MODELS, "vit_b_16", build)


def test_vits_give_tokens_blocks_and_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    nano_vit(monkeypatch)
    backbone = load_backbone("torchvision:vit_b_16@random").at_size(64)
    assert (backbone.pooling, backbone.dim, backbone.patch_px, backbone.num_heads) == ("cls", 48, 16, 3)
    first, last = backbone.last_blocks(pixels(64), 2)
    network: Any = backbone.network
    torch.testing.assert_close(last.cls, network(pixels(64)))
    assert (last.patches.shape, last.grid) == ((2, 16, 48), (4, 4))
    assert not torch.equal(first.cls, last.cls)
    attention = backbone.attention(pixels(64))
    assert attention.shape == (2, 3, 17, 17)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 17))
    # From the definition, for the class token of the last block.
    block, normed = network.encoder.layers[-1], []
    handle = block.ln_1.register_forward_hook(lambda module, inputs, output: normed.append(output))
    network(pixels(64))
    handle.remove()
    query, key, _ = torch.nn.functional.linear(
        normed[0], block.self_attention.in_proj_weight, block.self_attention.in_proj_bias
    ).chunk(3, dim=-1)
    query, key = (part.unflatten(-1, (3, 16)).transpose(1, 2) for part in (query, key))
    torch.testing.assert_close(attention, (query @ key.mT / 4).softmax(-1))


def test_vits_are_built_for_other_sizes_and_the_first_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    nano_vit(monkeypatch)
    backbone = load_backbone("torchvision:vit_b_16@random")
    before = hash_weights(backbone.network.state_dict())
    larger = backbone.at_size(256)
    expected = interpolate_embeddings(256, 16, backbone.network.state_dict())["encoder.pos_embedding"]
    assert torch.equal(larger.network.state_dict()["encoder.pos_embedding"], expected)
    assert larger.forward(pixels(256)).grid == (16, 16)
    assert hash_weights(backbone.network.state_dict()) == before
    assert larger.weights_sha256 == backbone.weights_sha256
    with pytest.raises(AssertionError, match="Wrong image height"):
        backbone.forward(pixels(256))
    with pytest.raises(ConfigError, match="225 is not a multiple of the patch size 16 of vit_b_16"):
        backbone.at_size(225)


def test_a_file_tells_the_size_that_a_vit_is_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nano_vit(monkeypatch)
    torch.save(models.get_model("vit_b_16", image_size=384).state_dict(), tmp_path / "w.pth")
    backbone = load_backbone(f"torchvision:vit_b_16@{tmp_path / 'w.pth'}")
    # Those of the weights for 384 px that torchvision has.
    assert (backbone.preprocess.image_px, backbone.preprocess.resize_px) == (384, 384)
    assert backbone.preprocess.interpolation == "bicubic"
    assert backbone.with_protocol_geometry().preprocess.image_px == 384


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (
            "densenet121",
            "features.denseblock1.denselayer2.norm.1.weight",
            "features.denseblock1.denselayer2.norm1.weight",
        ),
        (
            "densenet121",
            "features.denseblock1.denselayer2.conv.2.weight",
            "features.denseblock1.denselayer2.conv2.weight",
        ),
        ("vit_b_16", "encoder.layers.encoder_layer_0.mlp.linear_1.bias", "encoder.layers.encoder_layer_0.mlp.0.bias"),
        ("vit_b_16", "encoder.layers.encoder_layer_0.mlp.linear_2.bias", "encoder.layers.encoder_layer_0.mlp.3.bias"),
    ],
)
def test_old_names_of_torchvisions_files(name: str, old: str, new: str) -> None:
    with torch.device("meta"):
        network = models.get_model(name)
    assert new in network.state_dict()
    for given in (old, new):
        assert list(_remap({given: torch.zeros(1)}, network)[0]) == [new]


def test_preprocessing_is_that_of_the_default_weights() -> None:
    backbone = load_backbone("torchvision:mobilenet_v2@random")
    assert backbone.preprocess == Preprocess(image_px=224, resize_px=232, interpolation="bilinear")
    assert backbone.load is None


def test_files_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(small("resnet18").state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"does not fit torchvision:mobilenet_v2: of .* match"):
        load_backbone(f"torchvision:mobilenet_v2@{tmp_path / 'w.pth'}")
    with pytest.raises(CheckpointError, match="does not fit torchvision:resnet34"):
        load_backbone(f"torchvision:resnet34@{tmp_path / 'w.pth'}")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("torchvision:resnet19@random", "knows no classification network 'resnet19'; the nearest are resnet18"),
        ("torchvision:fcn_resnet50@random", "knows no classification network 'fcn_resnet50'"),
        ("torchvision:quantized_resnet18@random", "knows no classification network"),
    ],
)
def test_unknown_names_are_refused(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_backbone(spec)


def test_the_seed_decides() -> None:
    hashes = [load_backbone("torchvision:squeezenet1_1@random", seed=seed).weights_sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_sizes_below_the_least_are_refused() -> None:
    backbone = load_backbone("torchvision:alexnet@random")
    with pytest.raises(ConfigError, match="image size 62 is too small for alexnet; it takes 63 px or more"):
        backbone.at_size(62)


def test_pretrained_weights_without_a_network_are_told_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("patchssl.backbones.torchvision_models.is_reachable", lambda url: False)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"neither in the cache nor .* give torchvision:resnet18@FILE"):
        load_backbone("torchvision:resnet18")
    assert time.perf_counter() - start < 5
    assert capfd.readouterr() == ("", "")


def test_pretrained_weights_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Of a name that torch checks by no hash, where torch looks for it.
    weights = models.get_model_weights("squeezenet1_1").DEFAULT
    network = models.get_model("squeezenet1_1")
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / Path(weights.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    backbone = load_backbone("torchvision:squeezenet1_1")
    remove_classifier(network)
    assert backbone.weights_sha256 == hash_weights(network.state_dict())
    assert backbone.load is not None
    assert len(backbone.load.matched) == len(network.state_dict())
