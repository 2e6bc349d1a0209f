"""Projection heads and centres that come with the model that a run starts from (`model.init_heads`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchssl.backbones.report import fill, listed
from patchssl.backbones.training_heads import TrainingHeads, read_heads
from patchssl.backbones.vit_facts import told_settings
from patchssl.config import ModelConfig
from patchssl.errors import ConfigError
from patchssl.heads import ProjectionHead
from patchssl.student_teacher import StudentTeacher

LOADED, FRESH = "loaded", "fresh"


@dataclass(frozen=True, slots=True)
class Heads:
    """What became of heads and centres.

    Attributes:
        heads: `loaded` or `fresh` for each head of the run.
        centers: the same for each centre.
        told: a line for the log.
    """

    heads: Mapping[str, str]
    centers: Mapping[str, str]
    told: str


def initialise_heads(networks: StudentTeacher, spec: str) -> Heads:
    """Fill the student's heads, and the centres that belong to them, from a checkpoint, if the configuration says so.

    A head for patches that the checkpoint lacks starts fresh; one that the configuration has no place for is left. A
    centre is taken where it is of the same head and shape.

    Args:
        networks: the student's heads and the centres are changed, the teacher is not.
        spec: of the model.

    Raises:
        ConfigError: there are no heads, or they have other widths or numbers of prototypes than the configured ones.
        CheckpointError: they cannot be read.
    """
    model = networks.config.model
    own = _heads_of(networks)
    if not model.init_heads:
        told = "projection heads start fresh; --init-heads takes those of a run or of DINO's training checkpoints"
        return Heads(dict.fromkeys(own, FRESH), dict.fromkeys(networks.centers, FRESH), told)
    found = read_heads(spec)
    taken = {kind: state for kind, state in found.states.items() if kind in own}
    _check(taken, own, model, networks.student.patch_head is None, spec)
    for kind, state in taken.items():
        advice = "the file was changed or cut, take another copy of it"
        fill(own[kind], state, origin=spec, arch=f"the configured head for {kind}", advice=advice, allow_partial=None)
    centers = dict.fromkeys(networks.centers, FRESH)
    for kind in networks.centers:
        if (center := _center(kind, found, networks, taken)) is not None:
            networks.centers[kind] = center
            centers[kind] = LOADED
    heads = {kind: LOADED if kind in taken else FRESH for kind in own}
    return Heads(heads, centers, _told(heads, centers, found))


def _heads_of(networks: StudentTeacher) -> dict[str, ProjectionHead]:
    student = networks.student
    return {"cls": student.cls_head} | ({} if student.patch_head is None else {"patch": student.patch_head})


def _check(
    taken: Mapping[str, Mapping[str, Tensor]],
    own: Mapping[str, ProjectionHead],
    model: ModelConfig,
    one_head: bool,
    spec: str,
) -> None:
    wrong: list[str] = []
    settings: dict[str, Any] = {}
    for kind, state in taken.items():
        there, here = _sizes(kind, state), _sizes(kind, own[kind].state_dict())
        differing = {key: value for key, value in there.items() if value != here[key]}
        wrong += [f"{key} {value} there, {here[key]} here" for key, value in differing.items()]
        norms = state["last_layer.weight_g"]
        if model.norm_last_layer and not torch.equal(norms, torch.ones_like(norms)):
            low, high = float(norms.min()), float(norms.max())
            wrong.append(f"norms of the prototypes for {kind} from {low:.4g} to {high:.4g} there, fixed at 1 here")
            differing["norm_last_layer"] = "false"
        if one_head and model.shared_head and "cls_prototypes" in differing:
            differing["patch_prototypes"] = differing["cls_prototypes"]
        settings |= differing
    if wrong:
        raise ConfigError(
            f"the projection heads of init {spec} do not fit: {'; '.join(wrong)}; set {told_settings(settings)}, or "
            "let them start fresh (model.init_heads=false)"
        )


def _sizes(kind: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of a head, by the settings that decide them."""
    num_prototypes, bottleneck = state["last_layer.weight_v"].shape
    return {
        f"{kind}_prototypes": num_prototypes,
        "head_hidden": state["mlp.0.weight"].shape[0],
        "head_bottleneck": bottleneck,
    }


def _center(
    kind: str, found: TrainingHeads, networks: StudentTeacher, taken: Mapping[str, Mapping[str, Tensor]]
) -> Tensor | None:
    """The checkpoint's centre, if the head behind it is the one that now stands behind the run's."""
    there = kind if kind in found.states else "cls"
    here = kind if kind in _heads_of(networks) else "cls"
    center, own = found.centers.get(kind), networks.centers[kind]
    if there != here or here not in taken or center is None or center.shape != own.shape:
        return None
    return center.to(own, copy=True)


def _told(heads: Mapping[str, str], centers: Mapping[str, str], found: TrainingHeads) -> str:
    parts = [f"head for {kind} {state}" for kind, state in heads.items()]
    if heads.get("patch") == FRESH:
        parts[-1] += ", since init has none for patches"
    elif "patch" in found.states and "patch" not in heads:
        parts.append("init's own for patches left, since the configuration has none")
    parts += [f"centre of {kind} {'loaded' if state == LOADED else 'starts at 0'}" for kind, state in centers.items()]
    unused = f"; without a place: {listed(found.unused)}" if found.unused else ""
    return f"projection heads: {', '.join(parts)}{unused}"
