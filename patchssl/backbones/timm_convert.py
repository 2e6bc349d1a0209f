"""Weights as projects publish them → under the names and in the shapes of a network of timm."""

import contextlib
import inspect
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from patchssl.backbones.dinov2 import without_chunk
from patchssl.errors import CheckpointError

# What timm's modules call the function that renames the weights of their projects.
_FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
_TRAINING = ("dino_head.", "ibot_head.", "dino_loss.", "ibot_patch_loss.", "koleo_loss.", "gram_loss.")


@dataclass(frozen=True, slots=True)
class Converted:
    """Weights by a network's names.

    Attributes:
        weights: of the backbone.
        dropped: names of the file that found no use: heads, and what timm's conversion leaves out.
        resampled: names of weights that came in another shape.
    """

    weights: dict[str, Tensor]
    dropped: list[str]
    resampled: list[str]


def convert(network: nn.Module, weights: Mapping[str, Tensor], origin: str) -> Converted:
    """Rename weights for a network of timm, by timm's own conversion where the names differ.

    Args:
        network: of timm; only its names and shapes matter.
        weights: as a file names them.
        origin: the file, for messages.

    Raises:
        CheckpointError: timm cannot convert them.
    """
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    source = {name: value for name, value in weights.items() if not name.startswith(_TRAINING)}
    if any(name.startswith("blocks.0.attn.") for name in wanted):
        source = {without_chunk(name): value for name, value in source.items()}
    if "register_tokens" in source or any(".mlp.w12." in name for name in source):
        # The mark by which timm knows DINOv2; some files come without it.
        source.setdefault("mask_token", torch.zeros(1))
    heads = _classifiers(network)
    source = {name: value for name, value in source.items() if name.rpartition(".")[0] not in heads}
    if wanted == {name: value.shape for name, value in source.items()}:
        found = source
    else:
        found = _filtered(network, source, origin)
        found = {name: value for name, value in found.items() if name.rpartition(".")[0] not in heads}
    kept = {value.untyped_storage().data_ptr() for value in found.values()}
    used = {name for name, value in source.items() if name in found or value.untyped_storage().data_ptr() in kept}
    return Converted(
        weights=found,
        dropped=[name for name in weights if without_chunk(name) not in used and name not in used],
        resampled=[name for name in found if name in source and source[name].shape != found[name].shape],
    )


def _classifiers(network: Any) -> set[str]:
    named = network.pretrained_cfg.get("classifier") or ()
    return {named} if isinstance(named, str) else set(named)


def _filtered(network: Any, source: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    module = sys.modules[timm.model_entrypoint(network.pretrained_cfg["architecture"]).__module__]
    rename: Callable[..., Any] | None = next(
        (getattr(module, name) for name in _FILTERS if callable(getattr(module, name, None))), None
    )
    if rename is None:
        return dict(source)
    parameters = inspect.signature(rename).parameters
    # DeiT III writes LayerScale otherwise; timm's module for DeiT asks for this by a partial.
    more = {"adapt_layer_scale": True} if "adapt_layer_scale" in parameters else {}
    try:
        # Timm's conversion of DINOv3 prints; stdout is for results.
        with contextlib.redirect_stdout(io.StringIO()):
            found = rename(dict(source), network, **more) if len(parameters) > 1 else rename(dict(source))
    except Exception as error:
        raise CheckpointError(
            f"{origin} cannot be converted for {network.pretrained_cfg['architecture']} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); is it of another architecture?"
        ) from None
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
