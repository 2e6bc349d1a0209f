"""Networks that are at hand as objects → backbones."""

import copy
from dataclasses import replace
from typing import Any

from torch import nn
from torchvision import models

from patchssl.backbones import timm_describe, torchvision_describe
from patchssl.backbones.preprocess import Preprocess
from patchssl.backbones.protocol import Backbone, Reader
from patchssl.backbones.torchvision_readers import PARTS, remove_classifier
from patchssl.errors import ConfigError


def as_backbone(
    network: nn.Module,
    *,
    spec: str,
    preprocess: Preprocess | None = None,
    reader: Reader | None = None,
    arch: str | None = None,
    dim: int | None = None,
    patch_px: int | None = None,
) -> Backbone:
    """Make a backbone of a network. The network itself is copied and stays as it is.

    A network of timm or torchvision is told by its kind, and gives the same features and facts as its name would with
    the same weights. Any other needs `reader`, `dim`, `patch_px` and `preprocess`.

    Args:
        network: on any device, with a classifier or without.
        spec: what result rows call it.
        preprocess: how images are prepared; None for what belongs to the network.
        reader: runs it; None for networks of timm and torchvision.
        arch: the architecture's name; None for what the network tells.
        dim: D, for networks with a reader of their own.
        patch_px: side of a patch, for networks with a reader of their own.

    Raises:
        ConfigError: something is missing, given in vain, or the network is of no kind that is known.
    """
    if reader is not None:
        needed = {"preprocess": preprocess, "dim": dim, "patch_px": patch_px}
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise ConfigError(f"a network with a reader of its own needs {', '.join(missing)} as well")
        own = copy.deepcopy(network)
        facts: dict[str, Any] = {"family": "custom", "arch": arch or type(network).__name__, **needed}
        return Backbone.of(own, reader, spec=spec, **facts)
    if dim is not None or patch_px is not None:
        raise ConfigError("dim and patch_px are for a network with a reader of its own; of others they are read")
    own, facts = _described(network, arch)
    backbone = Backbone.of(own, spec=spec, **facts)
    return backbone if preprocess is None else replace(backbone.at_size(preprocess.image_px), preprocess=preprocess)


def _described(network: nn.Module, arch: str | None) -> tuple[nn.Module, dict[str, Any]]:
    own: Any = copy.deepcopy(network).eval()
    if getattr(network, "pretrained_cfg", None):
        if arch is not None:
            raise ConfigError(f"a network of timm tells its architecture; leave arch {arch!r} out")
        own.reset_classifier(0)
        return own, timm_describe.describe(own)
    if type(network).__module__.startswith("torchvision.models"):
        name = _known(arch) if arch is not None else _name_of(network)
        if type(network).__name__ in PARTS:
            remove_classifier(own)
            return own, torchvision_describe.describe(own, name)
    raise ConfigError(
        f"{type(network).__name__} is no classification network of timm or torchvision; give a reader, "
        "with preprocess, dim and patch_px"
    )


def _known(arch: str) -> str:
    if arch not in models.list_models(module=models):
        raise ConfigError(f"{arch!r} is no classification network of torchvision")
    return arch


def _name_of(network: nn.Module) -> str:
    """The architecture of torchvision that has as many parameters; they tell them all apart.

    Raises:
        ConfigError: none has, for instance because the classifier is another.
    """
    training = PARTS[type(network).__name__].training if type(network).__name__ in PARTS else ()
    num = sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if not name.startswith(tuple(f"{part}." for part in training))
    )
    found: list[str] = [
        name
        for name in models.list_models(module=models)
        if models.get_model_weights(name).DEFAULT.meta["num_params"] == num
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{num:,} parameters of a {type(network).__name__} tell no architecture of torchvision; give its name, "
            "arch='resnet50'"
        )
    return found[0]
