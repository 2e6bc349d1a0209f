"""Options that always come together, handed to a command as one frozen record."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from patchssl.cli.options import (
    batch_size_option,
    cache_options,
    device_option,
    own_device,
    precision_option,
    resolve_device,
    workers_option,
)
from patchssl.cli.processes import is_reporting

if TYPE_CHECKING:
    from patchssl.backbones import Backbone

CHECKPOINT_KEYS = ("teacher", "student")
PREPROCESSING = ("protocol", "model")
_NAMED = ("timm:", "torchvision:", "floor:")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Which backbone, and how it is read from its file.

    Attributes:
        checkpoint_key: which network of a training checkpoint; None for the teacher where there are two.
        image_size: side of the crop in pixels; None for what `preprocess` gives.
        arch: the architecture of a file that does not tell it.
        num_heads: the same for the number of heads.
        allow_partial: accept a file that does not fill the network.
        preprocess: `protocol` for the geometry of the named protocols, `model` for the model's own.
        crop_fraction: side of the crop over the resized side; None for what `preprocess` gives.
    """

    checkpoint_key: str | None = None
    image_size: int | None = None
    arch: str | None = None
    num_heads: int | None = None
    allow_partial: bool = False
    preprocess: str = "protocol"
    crop_fraction: float | None = None

    def check(self, spec: str) -> None:
        """Refuse options that have no meaning for a SPEC, before anything is read."""
        named = spec.startswith(_NAMED)
        of_file = {"--checkpoint-key": self.checkpoint_key, "--allow-partial": self.allow_partial or None}
        of_path = {"--arch": self.arch, "--num-heads": self.num_heads}
        if named and ("@" not in spec or spec.endswith("@random")):
            _refuse(of_file, f"for weight files; {spec} names none")
        if named:
            _refuse(of_path, f"for files that do not tell their architecture; {spec} names it")

    def load(self, spec: str, *, device: str, seed: int) -> "Backbone":
        """Load the backbone that a SPEC names."""
        from patchssl.backbones import load_backbone

        backbone = load_backbone(
            spec,
            checkpoint_key=self.checkpoint_key,
            device=device,
            seed=seed,
            arch=self.arch,
            num_heads=self.num_heads,
            allow_partial=self.allow_partial,
        )
        if self.preprocess == "protocol":
            backbone = backbone.with_protocol_geometry()
        if self.crop_fraction is not None:
            backbone = replace(backbone, preprocess=backbone.preprocess.with_crop_fraction(self.crop_fraction))
        return backbone if self.image_size is None else backbone.at_size(self.image_size)


def _refuse(values: Mapping[str, object], reason: str) -> None:
    given = [name for name, value in values.items() if value is not None]
    if given:
        raise click.UsageError(f"{', '.join(given)} is {reason}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeOptions:
    """How images are turned into features.

    Attributes:
        device: resolved.
        precision: of the forward pass.
        workers: processes that read images.
        batch_size: images in a forward pass.
        max_bad_fraction: unreadable images above this fraction are an error.
        cache: folder in which features are kept; None keeps none.
    """

    device: str
    precision: str
    workers: int
    batch_size: int
    max_bad_fraction: float
    cache: Path | None = None


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which network of a file, of what architecture, for which images; passed as `model_options: ModelOptions`."""
    options = (
        click.option(
            "--checkpoint-key",
            type=click.Choice(CHECKPOINT_KEYS),
            show_default="teacher where there are two",
            help="Which network of a training checkpoint.",
        ),
        click.option(
            "--arch",
            metavar="NAME",
            help="Architecture of a file that does not tell it: a name of timm, or DINO's vit_small and its kin.",
        ),
        click.option(
            "--num-heads",
            type=click.IntRange(min=1),
            metavar="N",
            help="Heads of the attention, for ViT files of an unusual width.",
        ),
        click.option(
            "--allow-partial",
            is_flag=True,
            help="Accept a file that does not fill the network; the rest keeps fresh weights, and the row says so.",
        ),
        click.option(
            "--preprocess",
            type=click.Choice(PREPROCESSING),
            default="protocol",
            show_default=True,
            help="protocol: bicubic, 256/224, centre crop for every model, runs of ours as their configuration says; "
            "model: what belongs to the model.",
        ),
        click.option(
            "--image-size",
            type=click.IntRange(min=1),
            metavar="N",
            show_default="as --preprocess says",
            help="Side of the crop in pixels; the resized side changes in proportion.",
        ),
        click.option(
            "--crop-fraction",
            type=click.FloatRange(min=0, max=1, min_open=True),
            metavar="F",
            show_default="as --preprocess says",
            help="Side of the crop over that of the resized image: 0.875 is 224 of 256, 1 leaves the margin in.",
        ),
    )
    return bundle(function, options, "model_options", ModelOptions)


def compute_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of how images become features, from `--device` to `--no-cache`, as `compute: ComputeOptions`."""
    return bundle(function, (*_computing(), *cache_options()), "compute", _compute_cached)


def lenient_compute_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same without `--max-bad-fraction`, for what lists unreadable images however many they are."""
    return bundle(
        function,
        (*_computing()[:-1], *cache_options()),
        "compute",
        functools.partial(_compute_cached, max_bad_fraction=1.0),
    )


def uncached_compute_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same without a cache, for what keeps no features."""
    return bundle(function, _computing(), "compute", _compute)


def _computing() -> tuple[Callable[..., Any], ...]:
    return (
        device_option(),
        precision_option(),
        workers_option(),
        batch_size_option(default=64),
        click.option(
            "--max-bad-fraction",
            type=click.FloatRange(0, 1),
            default=0.05,
            show_default=True,
            help="Unreadable images are left out and listed; above this fraction they are an error.",
        ),
    )


def _compute_cached(cache: Path, no_cache: bool, **values: Any) -> ComputeOptions:
    if no_cache and is_given(click.get_current_context(), "cache"):
        raise click.UsageError("--cache and --no-cache contradict each other; give one of them")
    return _compute(cache=None if no_cache else cache, **values)


def _compute(device: str, **values: Any) -> ComputeOptions:
    return ComputeOptions(device=own_device(resolve_device(device)), **values)


def bundle(
    function: Callable[..., Any], options: Sequence[Callable[..., Any]], name: str, make: Callable[..., Any]
) -> Callable[..., Any]:
    """Add options to a command that reach it as one record.

    Args:
        function: the command's.
        options: of Click, in the order of the help.
        name: of the command's parameter.
        make: is given the value of each option by its name, and makes the record.
    """
    before = len(getattr(function, "__click_params__", []))

    @functools.wraps(function)
    def call(*args: Any, **values: Any) -> Any:
        return function(*args, **{name: make(**{key: values.pop(key) for key in names})}, **values)

    for option in reversed(options):
        call = option(call)
    params: list[click.Parameter] = call.__click_params__  # type: ignore[attr-defined]
    names = [str(param.name) for param in params[before:]]
    return call


def is_given(context: click.Context, name: str) -> bool:
    """Whether the user gave an option, rather than leaving its default."""
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def features_are_given(
    context: click.Context, data: object, model: object, files: Sequence[str], idle: Sequence[str]
) -> bool:
    """Whether features come from files; refuses anything between that and DATA with --model.

    Args:
        context: of the command.
        data: DATA, or None.
        model: the SPEC, or None.
        files: the names of the options of feature files, all of which are needed.
        idle: the names of options that change nothing about features from files.
    """
    told = " and ".join(_flag(name) for name in files)
    given = [name for name in files if context.params[name] is not None]
    if not given:
        if data is None or model is None:
            raise click.UsageError(f"give DATA and --model, or {told}")
        return False
    if len(given) < len(files):
        raise click.UsageError(f"{told} belong together; give {'both' if len(files) == 2 else 'all'}")
    if data is not None or model is not None:
        raise click.UsageError(f"give either DATA and --model, or {told}, not both")
    useless = [_flag(name) for name in idle if is_given(context, name)]
    if useless:
        raise click.UsageError(f"{', '.join(useless)} change nothing about features from files; leave them out")
    if not is_reporting():
        context.exit(0)  # there is nothing to share
    return True


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# What only matters when features are computed.
OF_IMAGES = (
    "checkpoint_key",
    "arch",
    "num_heads",
    "allow_partial",
    "preprocess",
    "image_size",
    "crop_fraction",
    "device",
    "precision",
    "workers",
    "batch_size",
    "max_bad_fraction",
    "cache",
    "no_cache",
)
