from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from patchssl.backbones import Backbone, Preprocess, load_backbone
from patchssl.data.decode import UnreadableImage
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.extraction import extract, resolve_precision
from patchssl.structs import Tokens


@dataclass
class Drawn:
    """Images of one colour each, some of them unreadable."""

    num: int
    bad: frozenset[int] = frozenset()
    classes: tuple[str, ...] = ("a", "b")
    name: str = "drawn"
    location: str = "somewhere/drawn"
    ids: Sequence[str] = field(init=False)
    labels: np.ndarray | None = field(init=False)

    def __post_init__(self) -> None:
        self.ids = [f"{index}.png" for index in range(self.num)]
        self.labels = np.arange(self.num) % 2

    def __len__(self) -> int:
        return self.num

    def read(self, index: int) -> Image.Image:
        if index in self.bad:
            raise UnreadableImage(self.ids[index], "is truncated")
        pixels = np.random.default_rng(index).integers(0, 256, (20, 20 + index, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def fingerprint(self) -> str:
        return "print"

    def state(self) -> str:
        return "state"


class MeanColour(nn.Module):
    """Its class token is the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class MeanReader:
    def num_blocks(self, network: MeanColour) -> int:
        return 1

    def last_blocks(self, network: MeanColour, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        assert not torch.is_grad_enabled()
        grid = (pixels.shape[2], pixels.shape[3])
        return (Tokens(pixels.mean((2, 3)) * network.scale, pixels.flatten(2).mT, grid),)

    def attention(self, network: MeanColour, pixels: Tensor) -> Tensor:
        raise ConfigError("mean has no attention")


@pytest.fixture
def mean_colour() -> Backbone:
    preprocess = Preprocess(image_px=16, resize_px=18)
    facts = {"spec": "mean", "family": "floor", "arch": "mean", "dim": 3, "patch_px": 1}
    return Backbone.of(MeanColour(), MeanReader(), preprocess=preprocess, **facts)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def vit() -> Backbone:
    return load_backbone("timm:vit_tiny_patch16_224@random").at_size(32)


def test_features_equal_the_definition(mean_colour: Backbone) -> None:
    source = Drawn(5)
    features = extract(mean_colour, source, batch_size=2, precision="fp32").features["cls"]
    for index in range(5):
        crop = np.moveaxis(mean_colour.preprocess.crop(source.read(index)).numpy(), 0, 2) / 255
        expected = (crop.mean((0, 1)) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(features.features[index], expected, atol=1e-5)
    assert features.features.dtype == np.float32
    assert features.labels is not None
    assert features.labels.tolist() == [0, 1, 0, 1, 0]
    assert features.meta["dataset"] == {
        "name": "drawn",
        "path_name": "somewhere/drawn",
        "fingerprint": "print",
        "num_unreadable": 0,
    }
    assert features.meta["settings"]["image_px"] == 16
    assert features.meta["settings"]["precision"] == "fp32"


def test_settings_tell_the_geometry(mean_colour: Backbone) -> None:
    assert extract(mean_colour, Drawn(1), batch_size=1).features["cls"].meta["settings"]["resize"] == (
        "bicubic, shorter side"
    )
    other = Preprocess(image_px=16, resize_px=18, interpolation="bilinear", fit="squash")
    changed = extract(replace(mean_colour, preprocess=other), Drawn(1), batch_size=1)
    assert changed.features["cls"].meta["settings"]["resize"] == "bilinear, both sides"


def test_batch_size_and_workers_change_rounding_at_most(vit: Backbone) -> None:
    whole = extract(vit, Drawn(7), batch_size=7, precision="fp32").features["cls"].features
    ones = extract(vit, Drawn(7), batch_size=1, precision="fp32").features["cls"].features
    workers = extract(vit, Drawn(7), batch_size=7, precision="fp32", num_workers=1).features["cls"].features
    np.testing.assert_allclose(ones, whole, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(workers, whole)
    assert np.abs(whole).mean() > 0.1


def test_bf16_is_near_and_comes_back_as_float32(vit: Backbone) -> None:
    exact = extract(vit, Drawn(3), batch_size=3, precision="fp32").features["cls"].features
    coarse = extract(vit, Drawn(3), batch_size=3, precision="bf16").features["cls"]
    assert coarse.features.dtype == np.float32
    assert coarse.meta["settings"]["precision"] == "bf16"
    assert 0 < np.abs(coarse.features - exact).max() < 0.1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_images_are_left_out_and_listed(mean_colour: Backbone, num_workers: int) -> None:
    done: list[int] = []
    source = Drawn(9, bad=frozenset({0, 4, 5}))
    extraction = extract(
        mean_colour, source, batch_size=2, num_workers=num_workers, max_bad_fraction=0.34, progress=done.append
    )
    assert extraction.unreadable == tuple((f"{index}.png", "is truncated") for index in (0, 4, 5))
    features = extraction.features["cls"]
    assert features.ids is not None
    assert features.labels is not None
    assert features.ids.tolist() == [f"{index}.png" for index in (1, 2, 3, 6, 7, 8)]
    assert features.labels.tolist() == [1, 0, 1, 0, 1, 0]
    np.testing.assert_array_equal(
        features.features, extract(mean_colour, Drawn(9), batch_size=9).features["cls"].features[[1, 2, 3, 6, 7, 8]]
    )
    assert features.meta["dataset"]["num_unreadable"] == 3
    assert sum(done) == 9


def test_too_many_unreadable_images_stop_it_at_once(mean_colour: Backbone) -> None:
    source = Drawn(40, bad=frozenset({0, 1, 2}))
    with pytest.raises(
        DataError, match=r"3 of the first 4 images of somewhere/drawn \(40 in all\).*5.0%.*0.png: is tr"
    ):
        extract(mean_colour, source, batch_size=4)
    with pytest.raises(DataError, match="no readable image"):
        extract(mean_colour, Drawn(2, bad=frozenset({0, 1})), batch_size=4, max_bad_fraction=1.0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        # Without one of these, torch emulates bf16 on AVX512 and is slower than in fp32.
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"bf16": True}, "fp32"),
    ],
)
def test_auto_on_the_cpu_follows_what_the_processor_says(
    found: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert resolve_precision("auto", torch.device("cpu")) == expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"


def test_precision_names() -> None:
    assert resolve_precision("fp16", torch.device("cpu")) == "fp16"
    with pytest.raises(ConfigError, match="'int8' is unknown; allowed: auto, fp32, bf16, fp16"):
        resolve_precision("int8", torch.device("cpu"))
