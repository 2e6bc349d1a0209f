"""What `--model SPEC` names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from patchssl.errors import ConfigError

ACCEPTED = (
    "a run folder of patchssl (RUN), a weight file of patchssl, DINO, iBOT, PW-Self, DINOv2, DINOv3 or timm (FILE), "
    "RUN@random or FILE@random for a run's architecture with fresh weights, timm:NAME or torchvision:NAME for "
    "pretrained weights, either with @random behind it for fresh weights or with @FILE for the weights in a file, or "
    "floor:mean-colour and floor:raw-pixels"
)
_RANDOM = "@random"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A parsed SPEC.

    Attributes:
        text: as the user gave it.
        kind: `path`, or a key of `KINDS`.
        name: the path, or the name of the architecture or floor.
        random: fresh weights instead of trained ones.
        weights: the file of `NAME@FILE`.
    """

    text: str
    kind: str
    name: str
    random: bool
    weights: Path | None = None


def parse_spec(spec: str) -> ModelSpec:
    """Tell what a SPEC names, without reading it.

    A path that exists counts as it stands, even when it ends in `@random`.

    Raises:
        ConfigError: it is none of the accepted forms, or no such path exists.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind in KINDS:
        return KINDS[kind](spec, kind, rest)
    if spec.startswith(("http://", "https://", "hf-hub:", "hf_hub:")):
        raise ConfigError(f"{spec!r} is an address; download the file first. Accepted as a model: {ACCEPTED}")
    random = spec.endswith(_RANDOM) and not Path(spec).exists()
    name = spec.removesuffix(_RANDOM) if random else spec
    if not name or not Path(name).exists():
        raise ConfigError(f"there is no folder or file {name!r}. Accepted as a model: {ACCEPTED}")
    return ModelSpec(spec, "path", name, random)


def _of_library(spec: str, kind: str, rest: str) -> ModelSpec:
    """`NAME`, `NAME@random` or `NAME@FILE`."""
    name, at, weights = rest.partition("@")
    if not name or (at and not weights):
        raise ConfigError(f"{spec!r} names no model; {kind}:NAME, {kind}:NAME@random or {kind}:NAME@FILE is accepted")
    if not at or weights == "random":
        return ModelSpec(spec, kind, name, random=bool(at))
    if not Path(weights).is_file():
        raise ConfigError(f"{spec!r}: there is no file {weights!r}; {kind}:NAME@random is the untrained network")
    return ModelSpec(spec, kind, name, random=False, weights=Path(weights))


def _of_floor(spec: str, kind: str, rest: str) -> ModelSpec:
    return ModelSpec(spec, kind, rest, random=False)


KINDS: dict[str, Callable[[str, str, str], ModelSpec]] = {
    "timm": _of_library,
    "torchvision": _of_library,
    "floor": _of_floor,
}
