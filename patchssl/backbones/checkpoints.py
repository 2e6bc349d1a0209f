"""A file's content → the weights of one network of it, under the names that its backbone gives them."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from patchssl.backbones.report import listed
from patchssl.errors import CheckpointError

# Which key holds which network. Moving averages count as teachers: that is how they are used.
_NETWORKS = {"teacher": ("teacher", "model_ema", "state_dict_ema"), "student": ("student",)}
_CONTAINERS = ("state_dict", "model", "backbone")
_BESIDE_AVERAGE = ("model", "state_dict")
# Parts of names that wrappers insert.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_BACKBONE = "backbone."
_DISTRIBUTED = "module."


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """One network of a file.

    Attributes:
        weights: by the backbone's own names, heads of flat files among them.
        outside: weights that lie outside the backbone, by the file's names.
        checkpoint_key: `teacher` or `student` where the file tells.
        arch: the architecture that the file names, or None.
        marks: the other names that the file holds at its top, which help to tell its family.
        centre_dims: dimensions of the centre of DINO's loss, or None.
    """

    weights: Mapping[str, Tensor]
    outside: Mapping[str, Tensor]
    checkpoint_key: str | None
    arch: str | None
    marks: frozenset[str]
    centre_dims: int | None


def pick_network(content: Mapping[str, Any], checkpoint_key: str | None, origin: str) -> Network:
    """Choose a network of a file and undo what wrappers did to its names, prefix by prefix.

    Args:
        content: of a weight file.
        checkpoint_key: `teacher` or `student`; None for the teacher where there are two.
        origin: the file, for messages.

    Raises:
        CheckpointError: there is no such network, or no weights at all; it lists what there is.
    """
    found = _networks(content)
    if not found:
        raise CheckpointError(f"{origin} holds no weights; it holds: {_inventory(content)}")
    names = [name for name in found if name]
    if checkpoint_key is None:
        name = "teacher" if "teacher" in found else next(iter(found))
    elif checkpoint_key in found:
        name = checkpoint_key
    else:
        told = f"only the {names[0]}" if names else "one network that it calls neither teacher nor student"
        raise CheckpointError(
            f"the {checkpoint_key} is asked for, and {origin} holds {told}; it holds: {_inventory(content)}; "
            + (f"take --checkpoint-key {names[0]}" if names else "leave --checkpoint-key out")
        )
    weights, outside = _unwrap(found[name])
    centre = content.get("dino_loss")
    centre = centre.get("center") if isinstance(centre, Mapping) else None
    return Network(
        weights=weights,
        outside=outside,
        checkpoint_key=name or None,
        arch=_arch(content),
        marks=frozenset(content),
        centre_dims=centre.ndim if isinstance(centre, Tensor) else None,
    )


def _networks(content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The networks of a content by `teacher`, `student`, or an empty name where there is one without a name."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, keys in _NETWORKS.items():
        for key in keys:
            if name not in found and isinstance(content.get(key), Mapping) and (weights := _tensors(content[key])):
                found[name] = weights
    if found:
        for key in _BESIDE_AVERAGE:
            if "student" not in found and isinstance(content.get(key), Mapping):
                found["student"] = _tensors(content[key])
        return found
    for key in _CONTAINERS:
        if isinstance(content.get(key), Mapping):
            return _networks(content[key])
    return _by_prefix(_tensors(content))


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a mapping, or of the one container in it."""
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), None)
    return _tensors(inner) if not weights and inner is not None else weights


def _by_prefix(weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Networks of a training module, which are told apart by how their weights' names begin."""
    if not weights:
        return {}
    weights = _without(weights, _DISTRIBUTED)
    groups = {
        name: {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        for name in _NETWORKS
    }
    return {name: group for name, group in groups.items() if group} or {"": weights}


def _unwrap(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Undo wrappers; what lies beside a `backbone.` comes second, by its name."""
    plain = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): value for name, value in weights.items()
    }
    plain = _without(plain, _DISTRIBUTED)
    outside: dict[str, Tensor] = {}
    while any(name.startswith(_BACKBONE) for name in plain):
        outside |= {name: value for name, value in plain.items() if not name.startswith(_BACKBONE)}
        plain = {name.removeprefix(_BACKBONE): value for name, value in plain.items() if name.startswith(_BACKBONE)}
        plain = _without(plain, _DISTRIBUTED)
    return plain, outside


def _without(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Names without a prefix that all of them have, as often as they have it."""
    while weights and all(name.startswith(prefix) for name in weights):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _arch(content: Mapping[str, Any]) -> str | None:
    """What the training script called the architecture: a key of its own, or one of its options."""
    options = content.get("args")
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    found = options.get("arch", options.get("model")) if isinstance(options, Mapping) else None
    arch = content.get("arch", found)
    return arch if isinstance(arch, str) else None


def _inventory(content: Mapping[str, Any]) -> str:
    parts: Sequence[str] = [
        f"{name} ({len(value)} entries)" if isinstance(value, Mapping) else str(name) for name, value in content.items()
    ]
    return listed(parts, 8) or "nothing"
