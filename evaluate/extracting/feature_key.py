"""What features depend on, and so under what they may be kept."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from patchssl import __version__
from patchssl.backbones import Backbone
from patchssl.data.images import ImageSource
from patchssl.evaluate.results import canonical_hash
from patchssl.pooling import GEM_POWER

# Another version may decode, resize or compute differently.
_PACKAGES = ("torch", "timm", "torchvision", "pillow")


def feature_key(backbone: Backbone, source: ImageSource, *, precision: str) -> dict[str, Any]:
    """Everything that a feature depends on except its part: model, preprocessing, data, precision, and the programs.

    Args:
        backbone: on the device that computes; only its type counts.
        source: the images; the state of each counts, which says more than the data's fingerprint.
        precision: resolved.

    Returns:
        JSON.
    """
    return {
        "model": {
            "arch": backbone.arch,
            "family": backbone.family,
            "pooling": backbone.pooling,
            "reader": [type(backbone.reader).__qualname__, _plain_attributes(backbone.reader)],
            "weights_sha256": backbone.weights_sha256,
            "structure": hash_structure(backbone.network),
        },
        "preprocess": _as_json({"kind": type(backbone.preprocess).__qualname__, **asdict(backbone.preprocess)}),
        "data": source.state(),
        "num_images": len(source),
        "gem_power": GEM_POWER,
        "precision": precision,
        "device": backbone.device.type,
        "versions": {"patchssl": __version__, **{name: _version(name) for name in _PACKAGES}},
    }


def hash_structure(network: nn.Module) -> str:
    """SHA-256 over the class and the plain attributes of every module.

    Equal weights may be run in different ways: with another number of heads, stride or epsilon. Such numbers stand
    neither in names nor in shapes of the weights.
    """
    return canonical_hash(
        [
            [name, f"{type(module).__module__}.{type(module).__qualname__}", _plain_attributes(module)]
            for name, module in network.named_modules()
        ]
    )


def _plain_attributes(of: object) -> dict[str, Any]:
    names = {*getattr(of, "__dict__", ()), *getattr(of, "__dataclass_fields__", ())}
    values = {name: getattr(of, name) for name in names if not name.startswith("_")}
    return {name: _as_json(value) for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in (*value.keys(), *value.values()))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_as_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _as_json(item) for name, item in value.items()}
    # NaN and infinity have no place in JSON, enumerations and types no form.
    return value if value is None or isinstance(value, bool | int | str) else repr(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
