"""Image sizes and the geometry of the protocols, for networks of every kind."""

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from patchssl.backbones import Backbone, Preprocess, as_backbone, load_backbone
from patchssl.backbones.sizes import Sizes
from patchssl.errors import ConfigError


def pixels(side: int) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


def vit(image_px: int, patch_px: int = 16, **config: Any) -> Backbone:
    network: Any = VisionTransformer(img_size=image_px, patch_size=patch_px, embed_dim=24, depth=1, num_heads=2)
    size = {"input_size": (3, image_px, image_px), "fixed_input_size": True}
    network.pretrained_cfg = {"architecture": "vit_odd", "classifier": "head", **size, **config}
    return as_backbone(network, spec="odd")


def geometry(backbone: Backbone) -> tuple[int, int, str, str]:
    found = backbone.with_protocol_geometry().preprocess
    return found.image_px, found.resize_px, found.interpolation, found.fit


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        # Made for 384: 224 does, the patch divides it.
        (lambda: vit(384, interpolation="bilinear", crop_pct=1.0, crop_mode="squash"), (224, 256, "bicubic", "crop")),
        # Made for less than 224: its own side.
        (lambda: vit(32, crop_pct=1.0), (32, 36, "bicubic", "crop")),
        # No multiple of the patch is 224.
        (lambda: vit(240, patch_px=15), (240, 274, "bicubic", "crop")),
        (lambda: load_backbone("timm:test_resnet@random"), (160, 182, "bicubic", "crop")),
        (lambda: load_backbone("torchvision:shufflenet_v2_x0_5@random"), (224, 256, "bicubic", "crop")),
    ],
)
def test_protocol_geometry(backbone: Any, expected: tuple[int, int, str, str]) -> None:
    made = backbone()
    assert geometry(made) == expected
    changed = made.with_protocol_geometry()
    assert (changed.preprocess.mean, changed.preprocess.std) == (made.preprocess.mean, made.preprocess.std)
    side = expected[0]
    assert changed.forward(pixels(side)).cls.shape == (1, made.dim)
    assert changed.weights_sha256 == made.weights_sha256


def test_colours_stay_the_models() -> None:
    made = vit(384, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    assert made.with_protocol_geometry().preprocess == Preprocess(
        image_px=224, resize_px=256, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)
    )


def test_a_networks_own_geometry_is_timms_configuration() -> None:
    made = vit(384, interpolation="bilinear", crop_pct=0.95, crop_mode="squash")
    assert made.preprocess == Preprocess(
        image_px=384, resize_px=404, mean=made.preprocess.mean, std=made.preprocess.std,
        interpolation="bilinear", fit="squash",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="cropped by 'border'; only square RGB images, 'center' and 'squash'"):
        vit(32, crop_mode="border")


def test_networks_of_one_size_say_which() -> None:
    backbone = load_backbone("timm:levit_128s@random")
    with pytest.raises(ConfigError, match="image size 192 cannot be had: levit_128s takes images of 224 px only"):
        backbone.at_size(192)
    assert backbone.at_size(224).preprocess.image_px == 224
    assert backbone.with_protocol_geometry().preprocess.image_px == 224


def test_a_size_that_only_a_pass_shows_to_be_wrong() -> None:
    # Attention in blocks of 8 cells: at the end 256 px have 8 of them, 224 have 7.
    backbone = load_backbone("timm:halonet_h1@random")
    with pytest.raises(ConfigError, match="image size 224 cannot be had: halonet_h1 does not take it"):
        backbone.at_size(224)
    assert backbone.with_protocol_geometry().preprocess.image_px == 256
    with pytest.raises(ConfigError, match="image size 3 is too small for halonet_h1; it takes 32 px or more"):
        backbone.at_size(3)


def test_windows_work_at_other_sizes_as_timm_builds_them() -> None:
    name = "swin_tiny_patch4_window7_224"
    backbone = load_backbone(f"timm:{name}@random", seed=3)
    network = timm.create_model(name, num_classes=0, img_size=256).eval()
    assert backbone.preprocess.image_px == backbone.sizes.fixed_px == 224
    network.load_state_dict(backbone.network.state_dict())
    torch.testing.assert_close(
        backbone.at_size(256).forward(pixels(256)).cls, network(pixels(256)), rtol=1e-4, atol=1e-4
    )


def test_a_relative_position_vit_is_built_anew_and_the_first_stays() -> None:
    backbone = load_backbone("timm:test_vit_relpos@random")
    larger = backbone.at_size(192)
    assert larger.forward(pixels(192)).grid == (12, 12)
    assert backbone.forward(pixels(160)).grid == (10, 10)
    assert larger.at_size(192).network is larger.network
    with pytest.raises(ConfigError, match="200 is not a multiple of the patch size 16"):
        backbone.at_size(200)


@pytest.mark.parametrize(("side", "words"), [(40, "patch size 16"), (0, "patch size 16"), (32, "32 is too small")])
def test_sizes_by_hand(side: int, words: str) -> None:
    sizes = Sizes(multiple_px=16, min_px=48)
    with pytest.raises(ConfigError, match=words):
        sizes.fit(torch.nn.Identity(), side, "arch")
    assert sizes.fit(torch.nn.Identity(), 64, "arch")[1] is sizes
    assert (sizes.may_choose(64), sizes.may_choose(65), sizes.may_choose(32)) == (True, False, False)


def test_a_size_that_the_library_cannot_build_is_told() -> None:
    def rebuild(network: torch.nn.Module, side: int) -> torch.nn.Module:
        raise ValueError("windows of 7")

    sizes = Sizes(fixed_px=224, rebuild=rebuild)
    with pytest.raises(ConfigError, match=r"arch was built for 224 px and cannot be built for that \(windows of 7\)"):
        sizes.fit(torch.nn.Identity(), 230, "arch")
