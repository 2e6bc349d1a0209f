from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from patchssl.backbones import Backbone, Preprocess, load_backbone
from patchssl.data.images import ArraySource
from patchssl.evaluate.extracting.feature_key import feature_key, hash_structure
from patchssl.evaluate.results import canonical_hash


@pytest.fixture(scope="module")
def vit() -> Backbone:
    return load_backbone("timm:vit_tiny_patch16_224@random").at_size(32)


@pytest.fixture
def source() -> ArraySource:
    return ArraySource(np.zeros((2, 4, 4, 3), np.uint8), ("a", "b"), None, (), "name", "location")


def test_the_key_of_the_same_is_the_same(vit: Backbone, source: ArraySource) -> None:
    again = load_backbone("timm:vit_tiny_patch16_224@random").at_size(32)
    key = feature_key(vit, source, precision="fp32")
    assert key == feature_key(again, replace(source, name="other"), precision="fp32")
    assert len(canonical_hash(key)) == 64
    assert None not in key["versions"].values()


def test_every_field_of_the_preprocessing_counts_even_one_that_is_new(vit: Backbone, source: ArraySource) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Newer(Preprocess):
        antialias: bool = True

    def key(preprocess: Preprocess) -> Any:
        return canonical_hash(feature_key(replace(vit, preprocess=preprocess), source, precision="fp32"))

    old = vit.preprocess
    newer = Newer(**vars(old))
    others = [replace(old, image_px=16), replace(old, resize_px=33), replace(old, mean=(0.0, 0.0, 0.1))]
    others += [replace(old, std=(1.0, 1.0, 0.5)), newer, replace(newer, antialias=False)]
    assert len({key(preprocess) for preprocess in (old, *others)}) == 7


def test_structure_tells_what_weights_do_not() -> None:
    def attention(num_heads: int) -> nn.Module:
        return nn.MultiheadAttention(8, num_heads)

    assert hash_structure(attention(2)) == hash_structure(attention(2))
    pairs = [
        (attention(2), attention(4)),
        (nn.LayerNorm(4, eps=1e-5), nn.LayerNorm(4, eps=1e-6)),
        (nn.Conv2d(3, 4, 2, stride=1), nn.Conv2d(3, 4, 2, stride=2)),
        (nn.Sequential(nn.GELU()), nn.Sequential(nn.GELU(approximate="tanh"))),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())),
        (nn.ModuleDict({"a": nn.ReLU()}), nn.ModuleDict({"b": nn.ReLU()})),
    ]
    for first, second in pairs:
        assert hash_structure(first) != hash_structure(second)


def test_structure_does_not_depend_on_weights() -> None:
    assert hash_structure(nn.Linear(3, 4)) == hash_structure(nn.Linear(3, 4))
