"""Architectures of torchvision: untrained, pretrained, or with the weights of a file."""

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision import models

from patchssl.backbones.checkpoints import pick_network
from patchssl.backbones.options import LoadOptions
from patchssl.backbones.protocol import Backbone, fresh_weights
from patchssl.backbones.reading import read_file
from patchssl.backbones.remote import impatient, is_reachable
from patchssl.backbones.report import LoadReport, fill
from patchssl.backbones.spec import ModelSpec
from patchssl.backbones.torchvision_describe import describe, preprocessing
from patchssl.backbones.torchvision_readers import parts_of, remove_classifier
from patchssl.errors import CheckpointError, ConfigError

_POSITIONS = "encoder.pos_embedding"
# Networks that torchvision ported with weights made for other colours; it turns them in the network.
_OTHER_COLOURS = ("googlenet", "inception_v3")
_OLD_DENSE = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d\.)")
_OLD_MLP = {".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3."}


def load_torchvision(spec: ModelSpec, options: LoadOptions) -> Backbone:
    """Load `torchvision:NAME`, `torchvision:NAME@random` or `torchvision:NAME@FILE`.

    Raises:
        ConfigError: torchvision does not know the name, or an option has no meaning.
        CheckpointError: the weights cannot be had, or do not fill the network.
    """
    options.refuse("arch", "num_heads", spec=spec.text, reason="NAME is the architecture")
    if spec.name not in names():
        near = difflib.get_close_matches(spec.name, names(), n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else f"; it knows {', '.join(names())}"
        raise ConfigError(f"torchvision {torchvision.__version__} knows no classification network {spec.name!r}{hint}")
    if spec.weights is not None:
        return _of_file(spec, options)
    options.refuse("checkpoint_key", "allow_partial", spec=spec.text, reason="it names no file")
    network = _fresh(spec.name, options.seed) if spec.random else _pretrained(spec.name)
    load = None if spec.random else LoadReport(matched=tuple(network.state_dict()))
    return Backbone.of(network, spec=spec.text, load=load, **describe(network, spec.name))


def names() -> list[str]:
    """The classification networks of torchvision, without those of integers."""
    found: list[str] = models.list_models(module=models)
    return found


def build(name: str, *, seed: int = 0, weights: Any = None, image_px: int | None = None) -> nn.Module:
    """Build an architecture without its classifier.

    Args:
        name: of the architecture.
        seed: of fresh weights.
        weights: torchvision's, or None.
        image_px: side that a ViT is built for; None where the weights or the architecture tell.
    """
    settings: dict[str, Any] = {}
    if name in _OTHER_COLOURS and weights is None:
        settings = {"transform_input": True, "init_weights": True}
    if image_px is not None:
        settings["image_size"] = image_px
    with fresh_weights(seed):
        network: nn.Module = models.get_model(name, weights=weights, **settings)
    remove_classifier(network)
    return network


def _fresh(name: str, seed: int, positions: Tensor | None = None) -> nn.Module:
    """A network with fresh weights; a ViT for the grid of a file, or for the size of its default weights."""
    if not name.startswith("vit_"):
        return build(name, seed=seed)
    native_px = preprocessing(name).image_px
    if positions is None:
        return build(name, seed=seed, image_px=native_px)
    patch_px = int(name.rpartition("_")[2])
    return build(name, seed=seed, image_px=math.isqrt(positions.shape[1] - 1) * patch_px)


def _pretrained(name: str) -> nn.Module:
    weights = models.get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        # Torch says that it downloads before it knows whether it can.
        if not cached.is_file() and not is_reachable(weights.url):
            raise ConnectionError
        with impatient(weights.url):
            return build(name, weights=weights)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"the weights of torchvision:{name} are neither in the cache nor to be had from {weights.url} "
            f"({type(error).__name__}); download them where there is a network and give torchvision:{name}@FILE"
        ) from None


def _of_file(spec: ModelSpec, options: LoadOptions) -> Backbone:
    origin = str(spec.weights)
    assert spec.weights is not None
    chosen = pick_network(read_file(spec.weights), options.checkpoint_key, origin)
    network = _fresh(spec.name, options.seed, chosen.weights.get(_POSITIONS))
    weights, dropped = _remap(chosen.weights, network)
    load = fill(
        network,
        weights,
        origin=origin,
        arch=spec.text.partition("@")[0],
        advice=f"{spec.name} is not the architecture that the file is of: take that one",
        dropped=[*dropped, *chosen.outside],
        allow_partial=options.allow_partial,
    )
    return Backbone.of(
        network, spec=spec.text, load=load, checkpoint_key=chosen.checkpoint_key, **describe(network, spec.name)
    )


def _remap(weights: Mapping[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Old names of torchvision's own files → of its networks; classifiers and what only training needs is dropped."""
    parts = parts_of(network)
    heads = tuple(f"{name}." for name in (parts.classifier, *parts.training))
    kept: dict[str, Tensor] = {}
    dropped: list[str] = []
    for name, value in weights.items():
        if name.startswith(heads):
            dropped.append(name)
            continue
        renamed = _OLD_DENSE.sub(r"\1\2", name)
        for old, new in _OLD_MLP.items():
            renamed = renamed.replace(old, new)
        kept[renamed] = value
    return kept, dropped
