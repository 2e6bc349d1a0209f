"""Architectures of timm: untrained, pretrained, or with the weights of a file."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub
import timm
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from patchssl.backbones.checkpoints import pick_network
from patchssl.backbones.dinov3 import has_live_bias
from patchssl.backbones.options import LoadOptions
from patchssl.backbones.preprocess import Preprocess
from patchssl.backbones.protocol import Backbone, fresh_weights
from patchssl.backbones.reading import read_file
from patchssl.backbones.remote import impatient
from patchssl.backbones.report import LoadReport, fill
from patchssl.backbones.spec import ModelSpec
from patchssl.backbones.timm_convert import Converted, convert
from patchssl.backbones.timm_describe import describe, is_plain_vit
from patchssl.errors import CheckpointError, ConfigError

_IMAGE_PX, _RESIZE_PX = 224, 256
_REGISTERS = ("register_tokens", "storage_tokens", "reg_token")


def load_timm(spec: ModelSpec, options: LoadOptions) -> Backbone:
    """Load `timm:NAME`, `timm:NAME@random` or `timm:NAME@FILE`.

    Raises:
        ConfigError: timm does not know the name, an option has no meaning, or the network cannot be used.
        CheckpointError: the weights cannot be had, or do not fill the network.
    """
    options.refuse("arch", "num_heads", spec=spec.text, reason="NAME is the architecture")
    if spec.weights is not None:
        content = read_file(spec.weights)
        return load_weights(spec.name, content, spec.weights, spec=spec.text, options=options)
    options.refuse("checkpoint_key", "allow_partial", spec=spec.text, reason="it names no file")
    network = build(spec.name, seed=options.seed) if spec.random else _pretrained(spec.name)
    load = None if spec.random else LoadReport(matched=tuple(network.state_dict()))
    return Backbone.of(network, spec=spec.text, load=load, **describe(network))


def load_weights(
    name: str, content: Mapping[str, Any], path: Path, *, spec: str, options: LoadOptions, family: str | None = None
) -> Backbone:
    """Build an architecture and fill it with the weights of a file.

    Args:
        name: of the architecture.
        content: of the file.
        path: of the file.
        spec: the SPEC.
        options: which network of the file, and whether it may be partial.
        family: of the file, where it is of a project whose evaluations' preprocessing counts; None for timm's.

    Raises:
        ConfigError: timm does not know the name, or the network cannot be used.
        CheckpointError: the weights do not fill the network.
    """
    chosen = pick_network(content, options.checkpoint_key, str(path))
    network = build(name, seed=options.seed)
    _check_registers(network, chosen.weights, str(path), name)
    converted = convert(network, chosen.weights, str(path))
    if has_live_bias(chosen.weights):
        converted = _with_lost_biases(converted, chosen.weights)
    load = fill(
        network,
        converted.weights,
        origin=str(path),
        arch=f"timm:{name}",
        advice=_advice(converted.weights, network, name),
        dropped=[*converted.dropped, *chosen.outside],
        resampled=converted.resampled,
        allow_partial=options.allow_partial,
    )
    facts = describe(network)
    if family is not None:
        facts |= {"family": family, "preprocess": Preprocess(image_px=_IMAGE_PX, resize_px=_RESIZE_PX)}
    return Backbone.of(network, spec=spec, load=load, checkpoint_key=chosen.checkpoint_key, **facts)


def build(name: str, *, seed: int = 0, pretrained: bool = False) -> Any:
    """Build an architecture without its classifier, for images of any size where timm can.

    Args:
        name: of the architecture, with a tag or without.
        seed: of fresh weights.
        pretrained: load timm's weights.

    Raises:
        ConfigError: timm does not know the name.
    """
    check_name(name)
    settings: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    with fresh_weights(seed):
        try:
            network = timm.create_model(name, dynamic_img_size=True, **settings)
            # Windows that are found in the pass are not those that a network built for the size would have.
            if is_plain_vit(network):
                return network
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
    with fresh_weights(seed):
        try:
            return timm.create_model(name, **settings)
        except RuntimeError as error:
            raise ConfigError(f"timm cannot build {name!r}: {' '.join(str(error).split())}") from None


def check_name(name: str) -> None:
    """Make sure that timm knows an architecture and its tag.

    Raises:
        ConfigError: it does not; the message names the nearest.
    """
    # Names that timm would look up elsewhere, such as hf-hub:…, are unknown to is_model and stop here.
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else "; timm.list_models() lists them"
        raise ConfigError(f"timm {timm.__version__} knows no architecture {name!r}{hint}")
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.models.get_arch_pretrained_cfgs(name))
        raise ConfigError(f"timm {timm.__version__} cannot tell {name!r} ({error}); it knows {tags}") from None


def _pretrained(name: str) -> nn.Module:
    check_name(name)
    config = get_pretrained_cfg(name)
    url = hub.ENDPOINT if config is None or config.hf_hub_id else config.url
    if not isinstance(url, str) or not url:
        raise CheckpointError(
            f"timm has no pretrained weights of {name!r}; take timm:{name}@random, or timm:{name}@FILE with your own"
        )
    try:
        with impatient(url):
            network: nn.Module = build(name, pretrained=True)
    except OSError as error:
        raise CheckpointError(
            f"the weights of timm:{name} are neither in the cache nor to be had from {url} "
            f"({type(error).__name__}); download them where there is a network and give timm:{name}@FILE"
        ) from None
    return network


def _check_registers(network: nn.Module, weights: Mapping[str, Tensor], origin: str, name: str) -> None:
    """Compare registers first: timm's conversion takes them for positions, and stumbles over their number."""
    own = network.state_dict().get("reg_token")
    found = next((weights[key] for key in _REGISTERS if key in weights), None)
    numbers = [0 if tokens is None else tokens.shape[1] for tokens in (found, own)]
    if "cls_token" in weights and numbers[0] != numbers[1]:
        raise CheckpointError(
            f"{origin} has {numbers[0] or 'no'} registers and timm:{name} has {numbers[1] or 'none'}; take the "
            f"architecture {'with' if numbers[0] else 'without'} registers (…_reg4_… in timm's names for DINOv2)"
        )


def _with_lost_biases(converted: Converted, weights: Mapping[str, Tensor]) -> Converted:
    """Count biases that timm's conversion of DINOv3 leaves out in silence as weights without a place."""
    lost = [name for name in converted.dropped if name.endswith("attn.qkv.bias")]
    return Converted(
        {**converted.weights, **{name: weights[name] for name in lost}},
        [name for name in converted.dropped if name not in lost],
        converted.resampled,
    )


def _advice(weights: Mapping[str, Tensor], network: nn.Module, name: str) -> str:
    if any(key.endswith("attn.qkv.bias") for key in weights.keys() - network.state_dict().keys()):
        return f"the file has biases of queries and values and {name} has none: take {name}_qkvb"
    return f"{name} is not the architecture that the file is of: take that one"
