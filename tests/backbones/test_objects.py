from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import models

from patchssl.backbones import Preprocess, as_backbone, load_backbone
from patchssl.errors import ConfigError
from patchssl.structs import Tokens


def pixels(side: int) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def without_spec_and_load(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in ("spec", "load")}


@pytest.mark.usefixtures("nano")
@pytest.mark.parametrize("num_classes", [0, 11])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext2", "vit_nano_patch16_dinov3"])
def test_a_network_of_timm_is_the_same_by_name_and_as_an_object(name: str, num_classes: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=num_classes)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    named, given = load_backbone(f"timm:{name}@{tmp_path / 'w.pth'}"), as_backbone(network, spec="mine")
    assert without_spec_and_load(named.facts()) == without_spec_and_load(given.facts())
    assert given.facts()["spec"] == "mine"
    for attribute in ("preprocess", "pooling", "patch_px", "num_heads", "num_registers", "positions", "num_blocks"):
        assert getattr(named, attribute) == getattr(given, attribute), attribute
    for one, two in ((named, given), (named.at_size(96), given.at_size(96))):
        side = one.preprocess.image_px
        first, second = one.forward(pixels(side)), two.forward(pixels(side))
        assert torch.equal(first.cls, second.cls)
        assert torch.equal(first.patches, second.patches)
    assert named.with_protocol_geometry().preprocess == given.with_protocol_geometry().preprocess


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_a_network_of_torchvision_is_the_same_by_name_and_as_an_object(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = models.get_model(name)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    named, given = load_backbone(f"torchvision:{name}@{tmp_path / 'w.pth'}"), as_backbone(network, spec="mine")
    assert without_spec_and_load(named.facts()) == without_spec_and_load(given.facts())
    assert named.preprocess == given.preprocess
    first, second = named.forward(pixels(64)), given.forward(pixels(64))
    assert torch.equal(first.cls, second.cls)
    assert torch.equal(first.patches, second.patches)


def test_the_object_itself_stays_as_it_is() -> None:
    network: Any = timm.create_model("test_vit", num_classes=5).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    backbone = as_backbone(network, spec="mine").at_size(64)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        network.cls_token.add_(1)
    assert not torch.equal(network.cls_token, backbone.network.cls_token)  # type: ignore[arg-type]


def test_preprocessing_can_be_told() -> None:
    own = Preprocess(image_px=64, resize_px=64, mean=(0.1, 0.2, 0.3))
    assert as_backbone(timm.create_model("test_vit"), spec="mine", preprocess=own).preprocess == own
    odd = Preprocess(image_px=65, resize_px=65)
    with pytest.raises(ConfigError, match="65 is not a multiple of the patch size 16"):
        as_backbone(timm.create_model("test_vit"), spec="mine", preprocess=odd)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 8, 8)


class FlatReader:
    def num_blocks(self, network: Flat) -> int:
        return 1

    def last_blocks(self, network: Flat, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        maps = network.layer(pixels)
        return (Tokens(maps.mean((2, 3)), maps.flatten(2).mT, (maps.shape[2], maps.shape[3])),)

    def attention(self, network: Flat, pixels: Tensor) -> Tensor:
        raise ConfigError("none")


def test_any_module_with_a_reader() -> None:
    preprocess = Preprocess(image_px=32, resize_px=36)
    backbone = as_backbone(Flat(), spec="flat", reader=FlatReader(), preprocess=preprocess, dim=5, patch_px=8)
    assert (backbone.family, backbone.arch, backbone.num_params) == ("custom", "Flat", 5 * 3 * 64 + 5)
    assert backbone.forward(pixels(32)).cls.shape == (3, 5)
    assert backbone.at_size(48).forward(pixels(48)).grid == (6, 6)
    with pytest.raises(ConfigError, match="needs preprocess, patch_px as well"):
        as_backbone(Flat(), spec="flat", reader=FlatReader(), dim=5)
    with pytest.raises(ConfigError, match="Flat is no classification network of timm or torchvision; give a reader"):
        as_backbone(Flat(), spec="flat")
    with pytest.raises(ConfigError, match="are for a network with a reader of its own"):
        as_backbone(timm.create_model("test_vit"), spec="x", dim=5)


def test_an_architecture_of_torchvision_is_told_or_found() -> None:
    other_head = models.shufflenet_v2_x0_5(num_classes=7)
    with pytest.raises(ConfigError, match=r"parameters of a ShuffleNetV2 tell no architecture .* give its name"):
        as_backbone(other_head, spec="mine")
    assert as_backbone(other_head, spec="mine", arch="shufflenet_v2_x0_5").arch == "shufflenet_v2_x0_5"
    with pytest.raises(ConfigError, match="a network of timm tells its architecture"):
        as_backbone(timm.create_model("test_vit"), spec="mine", arch="test_vit")
    with pytest.raises(ConfigError, match="'resnet51' is no classification network"):
        as_backbone(other_head, spec="mine", arch="resnet51")
