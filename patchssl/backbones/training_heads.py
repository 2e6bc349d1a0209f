"""The projection heads beside the backbone of a training checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from patchssl.backbones import runs
from patchssl.backbones.checkpoints import pick_network
from patchssl.backbones.reading import read_file
from patchssl.backbones.report import listed
from patchssl.backbones.spec import parse_spec
from patchssl.checkpoint import KIND
from patchssl.errors import ConfigError
from patchssl.heads import head_state_from_dino

State = Mapping[str, Tensor]

# By the kind of token that a head is for, and the project: ours; DINO, iBOT and PW-Self; DINOv2.
_PREFIXES = {"cls": ("cls_head.", "head.", "dino_head."), "patch": ("patch_head.", "ibot_head.")}
_LAYERS = {f"mlp.{layer}.{part}" for layer in (0, 2, 4) for part in ("weight", "bias")}
_NAMES = _LAYERS | {"last_layer.weight_g", "last_layer.weight_v"}


@dataclass(frozen=True, slots=True)
class TrainingHeads:
    """The heads of one network of a checkpoint, by the names of `ProjectionHead`.

    Attributes:
        states: of `cls` and, where patches have a head of their own, of `patch`.
        centers: (C, K) of `cls` and `patch`, where the checkpoint has them.
        unused: names of weights of heads that have no place in such heads.
    """

    states: Mapping[str, State]
    centers: Mapping[str, Tensor]
    unused: tuple[str, ...]


def read_heads(spec: str) -> TrainingHeads:
    """Read the heads of the teacher, or of the only network, of a run of ours or of a training checkpoint.

    DINO's and PW-Self's have one head, for the class token; so has iBOT's, whose last layer for masked patches finds
    no use.

    Raises:
        ConfigError: the SPEC names no training checkpoint, or one without such heads.
        CheckpointError: it cannot be read.
    """
    parsed = parse_spec(spec)
    if parsed.kind != "path" or parsed.random:
        raise ConfigError(_without_heads(spec))
    path = Path(parsed.name)
    file = path if path.is_file() else runs.find_checkpoint(path)
    content = read_file(file)
    weights = _beside_backbone(content, str(file))
    states = {kind: _of_prefixes(weights, names) for kind, names in _PREFIXES.items()}
    # A classifier may be called `head`, too.
    states = {kind: state for kind, state in states.items() if state.keys() & _NAMES}
    if "cls" not in states:
        raise ConfigError(_without_heads(spec))
    for kind, state in states.items():
        if missing := sorted(_NAMES - state.keys()):
            raise ConfigError(
                f"the head of {spec} for {kind} lacks {listed(missing)}; only heads of three linear layers and "
                "weight-normalised prototypes, as DINO's without batch norm, can be taken: set model.init_heads=false"
            )
    return TrainingHeads(
        states={kind: {name: state[name] for name in sorted(_NAMES)} for kind, state in states.items()},
        centers=_centers(content),
        unused=tuple(sorted(name for state in states.values() for name in state.keys() - _NAMES)),
    )


def _beside_backbone(content: Mapping[str, Any], origin: str) -> State:
    """All weights of the network that may belong to heads."""
    if content.get("kind") == KIND:
        found: State = content[runs.KEYS[0]]
        return found
    network = pick_network(content, None, origin)
    # Files that have no `backbone.` before their names keep heads among the weights.
    return {**network.weights, **network.outside}


def _of_prefixes(weights: State, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    return head_state_from_dino({name: value for name, value in plain.items() if name.startswith(prefixes)})


def _centers(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Ours by kind of token; DINO's loss has one, (1, K)."""
    own = content.get("centers") if content.get("kind") == KIND else None
    if isinstance(own, Mapping):
        return dict(own)
    loss = content.get("dino_loss")
    center = loss.get("center") if isinstance(loss, Mapping) else None
    return {"cls": center} if isinstance(center, Tensor) and center.ndim == 2 else {}


def _without_heads(spec: str) -> str:
    return (
        f"init {spec} has no projection heads; a run of patchssl and a full training checkpoint of DINO have: take one "
        "of these, or let the heads start fresh (model.init_heads=false)"
    )
