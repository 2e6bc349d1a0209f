"""`patchssl inspect`: what a model is, and which weights of its file found their place."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from patchssl.cli.bundles import ModelOptions, model_options
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import format_option, quiet_option, seed_option

if TYPE_CHECKING:
    from patchssl.backbones import Backbone

_NUM_SHOWN = 8
_WEIGHTS = ("matched", "missing", "unexpected", "reshaped", "resampled", "dropped")


@click.command()
@click.argument("spec")
@click.option(
    "--self-test",
    is_flag=True,
    help="Also check the forward pass (finite, deterministic, independent of the batch) and run every task on 20 drawn "
    "images. A failed check makes the exit code 1.",
)
@model_options
@seed_option()
@format_option()
@quiet_option()
def inspect(
    spec: str, self_test: bool, model_options: ModelOptions, seed: int, output_format: str, quiet: bool
) -> None:
    """Say what the model that SPEC names is, and which weights of its file fit.

    \b
    SPEC is one of
      RUN                 a run folder, or a checkpoint file of one
      FILE                weights of DINO, iBOT, PW-Self, DINOv2, DINOv3 or timm
      timm:NAME           pretrained weights of timm
      torchvision:NAME    the same of torchvision
    RUN@random, timm:NAME@random and torchvision:NAME@random have fresh weights, timm:NAME@FILE and
    torchvision:NAME@FILE those of a file.

    \b
    Examples:
      patchssl inspect dino_deitsmall16_pretrain.pth
      patchssl inspect checkpoint.pth --checkpoint-key student --format json
      patchssl inspect timm:vit_small_patch16_dinov3@weights.safetensors
      patchssl inspect runs/mine --self-test
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    model_options.check(spec)
    backbone = model_options.load(spec, device="cpu", seed=seed)
    facts = facts_of(backbone)
    if self_test:
        facts["self_test"] = checks = _self_test(backbone, seed)
    click.echo(_render(facts, output_format))
    if self_test:
        _refuse_failed(checks, spec)


def _self_test(backbone: "Backbone", seed: int) -> list[dict[str, str]]:
    from patchssl.evaluate.self_test import self_test
    from patchssl.evaluate.suites.structs import Compute

    compute = Compute(device="cpu", precision="fp32", num_workers=0, batch_size=8, max_bad_fraction=0.0, seed=seed)
    return [{"check": check.name, "status": check.status, "told": check.told} for check in self_test(backbone, compute)]


def _refuse_failed(checks: Sequence[Mapping[str, str]], spec: str) -> None:
    from patchssl.errors import PatchsslError
    from patchssl.evaluate.self_test import FAILED

    failed = [f"{check['check']} ({check['told']})" for check in checks if check["status"] == FAILED]
    if failed:
        raise PatchsslError(
            f"{len(failed)} of {len(checks)} checks of {spec} failed: {'; '.join(failed)}; its numbers cannot be "
            "trusted before that is mended"
        )


def facts_of(backbone: "Backbone") -> dict[str, Any]:
    """Everything that is known of a backbone, by name; `weights` is None where none were read."""
    preprocess, load = backbone.preprocess, backbone.load
    return {
        "spec": backbone.spec,
        "family": backbone.family,
        "arch": backbone.arch,
        "checkpoint_key": backbone.checkpoint_key,
        "num_params": backbone.num_params,
        "dim": backbone.dim,
        "patch_px": backbone.patch_px,
        "blocks": backbone.num_blocks,
        "heads": backbone.num_heads,
        "registers": backbone.num_registers,
        "cls": backbone.pooling,
        "positions": backbone.positions,
        "preprocess": {
            "image_px": preprocess.image_px,
            "resize_px": preprocess.resize_px,
            "resize": preprocess.resize,
            "crop": "centre",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
        },
        "weights_sha256": backbone.weights_sha256,
        "weights": None
        if load is None
        else {**{name: list(getattr(load, name)) for name in _WEIGHTS}, "partial": load.partial},
    }


def _render(facts: Mapping[str, Any], output_format: str) -> str:
    if output_format == "json":
        return json.dumps(facts, indent=2)
    lines = _lines(facts)
    if output_format == "table":
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)
    if output_format == "markdown":
        cells = [("fact", "value"), ("---", "---"), *((name, value.replace("|", "\\|")) for name, value in lines)]
        return "\n".join(f"| {name} | {value} |" for name, value in cells)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([("fact", "value"), *lines])
    return buffer.getvalue().rstrip("\n")


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text; many names of weights are counted and the first shown."""
    lines: list[tuple[str, str]] = []
    for name, value in facts.items():
        if name == "preprocess":
            lines += [(f"preprocess {key}", _text(part)) for key, part in value.items()]
        elif name == "self_test":
            lines += [(f"self-test {check['check']}", f"{check['status']}: {check['told']}") for check in value]
        elif name == "weights":
            lines += [("weights", "fresh")] if value is None else _weights(value)
        else:
            lines.append((name, _text(value)))
    return lines


def _weights(weights: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for name in _WEIGHTS:
        names: Sequence[str] = weights[name]
        shown = "" if name == "matched" or not names else f": {', '.join(names[:_NUM_SHOWN])}"
        lines.append((f"weights {name}", f"{len(names)}{shown}{', …' if shown and len(names) > _NUM_SHOWN else ''}"))
    return [*lines, ("weights partial", _text(weights["partial"]))]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(f"{part:.4g}" for part in value)
    return f"{value:,}" if isinstance(value, int) else str(value)
