"""Pretraining that goes on from a model instead of fresh weights (`model.init`)."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from patchssl.backbones import Backbone, load_backbone, parse_spec
from patchssl.backbones.runs import FAMILY as OUR_FAMILY
from patchssl.backbones.timm_models import build
from patchssl.backbones.vit_facts import differences, settings_for, told_settings, vit_facts
from patchssl.backbones.vit_transfer import Transfer, transfer
from patchssl.checkpoint import written_whole
from patchssl.config import Config
from patchssl.errors import ConfigError
from patchssl.initial_heads import Heads, initialise_heads
from patchssl.photometric import IMAGENET_MEAN, IMAGENET_STD
from patchssl.student_teacher import StudentTeacher

logger = logging.getLogger(__name__)

_FILE = "init.json"
_NO_VIT = "pretraining goes on from ViTs of timm's VisionTransformer only, with learned positions"


@dataclass(frozen=True, slots=True)
class Initial:
    """What a run started from.

    Attributes:
        told: lines for the log.
        warnings: the same for what calls for care.
        facts: what the run folder keeps.
    """

    told: tuple[str, ...]
    warnings: tuple[str, ...]
    facts: Mapping[str, Any]

    def log(self) -> None:
        """Say it."""
        for line in self.told:
            logger.info(line)
        for line in self.warnings:
            logger.warning(line)


def initialise(networks: StudentTeacher, *, seed: int) -> Initial | None:
    """Fill student and teacher from the model that the configuration names, if it names one.

    Both backbones get the teacher's weights of a run or training checkpoint. At the size of the global views they then
    give the tokens of that model; the position embedding comes to that grid as the model's family does it, and to those
    of local views from there in timm's way (see `transfer`). Projection heads stay fresh unless `model.init_heads`.

    Args:
        networks: with fresh weights. After an error they are of no use.
        seed: of the weights of `@random`.

    Raises:
        ConfigError: the model has another architecture than the configured one or is no ViT of timm's, or its heads do
            not fit or are asked for where there are none; the message says what to set.
        CheckpointError: its weights cannot be had, or leave some of the network unfilled.
    """
    config = networks.config
    spec = config.model.init
    if spec is None:
        return None
    target = networks.student.backbone
    _check_before_loading(spec, target, config)
    num_heads = vit_facts(target)["heads"]
    backbone = load_backbone(spec, seed=seed, allow_partial=None, assumed_heads=num_heads)
    source = _same(backbone.network, target, config, spec=spec, family=backbone.family, arch=backbone.arch)
    if backbone.pooling != config.model.pooling:
        raise ConfigError(
            f"init {spec} sums an image up by {backbone.pooling}, the configuration says model.pooling="
            f"{config.model.pooling}; set model.pooling={backbone.pooling}"
        )
    heads = initialise_heads(networks, spec)
    moved = transfer(source, target, resampling=backbone.positions, origin=spec)
    networks.teacher.load_state_dict(networks.student.state_dict())
    return Initial(_told(backbone, moved, heads), _warnings(backbone), _facts(backbone, moved, heads))


def keep_initial(run: Path, initial: Initial | None) -> None:
    """Write `init.json` into a run folder; without a model to start from remove that of a run of before.

    Raises:
        CheckpointError: it cannot be written.
    """
    if initial is None:
        (run / _FILE).unlink(missing_ok=True)
        return
    with written_whole(run / _FILE, then="start again") as file:
        file.write(json.dumps(initial.facts, indent=2).encode() + b"\n")


def _check_before_loading(spec: str, target: VisionTransformer, config: Config) -> None:
    """Refuse what the SPEC alone shows to be no such network, before its weights are fetched."""
    parsed = parse_spec(spec)
    if parsed.kind not in ("path", "timm"):
        raise ConfigError(f"init {spec} is a model of {parsed.kind}; {_NO_VIT}: take a run, a file or timm:NAME")
    if parsed.kind == "timm":
        with torch.device("meta"):
            network = build(parsed.name)
        _same(network, target, config, spec=spec, family="timm", arch=parsed.name)


def _same(
    network: Any, target: VisionTransformer, config: Config, *, spec: str, family: str, arch: str
) -> VisionTransformer:
    """The network, once it is known to be of the target's architecture."""
    if not isinstance(network, VisionTransformer):
        raise ConfigError(f"init {spec} ({family} {arch}) is a network of type {type(network).__name__}; {_NO_VIT}")
    if network.attn_pool is not None or not isinstance(network.fc_norm, nn.Identity):
        pool = "attention" if network.attn_pool is not None else "a mean with a norm behind it"
        raise ConfigError(
            f"init {spec} ({family} {arch}) pools its tokens by {pool}, for which pretraining has no place; take a ViT "
            "that ends with the norm of its tokens and has a class token or plain patches"
        )
    there, model = vit_facts(network), config.model
    wrong = differences(there, vit_facts(target))
    if not wrong:
        return network
    settings = told_settings(settings_for(there, model, arch.partition(".")[0]))
    ways = [f"set {settings}"] if settings else ["no usual architecture of timm is like it; take another model"]
    if family == OUR_FAMILY and (Path(spec) / "config.yaml").is_file():
        ways.append(f"take its configuration, --config {Path(spec) / 'config.yaml'}")
    raise ConfigError(
        f"init {spec} ({family} {arch}) is another network than the configuration asks for (model.arch {model.arch}): "
        f"{'; '.join(wrong)}; {', or '.join(ways)}"
    )


def _told(backbone: Backbone, moved: Transfer, heads: Heads) -> tuple[str, ...]:
    which = f", {backbone.checkpoint_key}" if backbone.checkpoint_key else ""
    weights = "fresh weights" if backbone.load is None else "weights"
    if moved.grids is None or moved.grids[0] == moved.grids[1]:
        positions = "position embedding as it is"
    else:
        there, here = ("x".join(map(str, grid)) for grid in moved.grids)
        positions = f"position embedding resampled from {there} to {here} ({backbone.positions})"
    backbone_told = (
        f"init {backbone.spec} ({backbone.family} {backbone.arch}{which}): all {len(moved.report.matched)} {weights} "
        f"of the backbone, sha256 {backbone.weights_sha256[:12]}; {positions}"
    )
    return (backbone_told, heads.told)


def _warnings(backbone: Backbone) -> tuple[str, ...]:
    preprocess = backbone.preprocess
    if (preprocess.mean, preprocess.std) == (IMAGENET_MEAN, IMAGENET_STD):
        return ()
    return (
        f"init {backbone.spec} was made for pixels of mean {_numbers(preprocess.mean)} and standard deviation "
        f"{_numbers(preprocess.std)}; this run, and its evaluation, normalise by ImageNet's {_numbers(IMAGENET_MEAN)} "
        f"and {_numbers(IMAGENET_STD)}, to which the network has to adapt",
    )


def _facts(backbone: Backbone, moved: Transfer, heads: Heads) -> dict[str, Any]:
    preprocess = backbone.preprocess
    grids = None if moved.grids is None else {"there": moved.grids[0], "here": moved.grids[1]}
    return {
        **backbone.facts(),
        "checkpoint_key": backbone.checkpoint_key,
        "num_heads": backbone.num_heads,
        "transfer": moved.report.brief(),
        "positions": grids and {**grids, "resampling": backbone.positions},
        "heads": dict(heads.heads),
        "centers": dict(heads.centers),
        "mean": preprocess.mean,
        "std": preprocess.std,
    }


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
