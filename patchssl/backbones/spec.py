"""What `--model SPEC` names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from patchssl.errors import ConfigError

ACCEPTED = (
    "a run folder of patchssl (RUN), a checkpoint of patchssl (FILE.pt), either with @random behind it for the same "
    "architecture with fresh weights, timm:NAME@random for an untrained ViT of timm, or floor:mean-colour and "
    "floor:raw-pixels"
)
_RANDOM = "@random"
_REMOTE = ("timm:", "torchvision:", "hf-hub:", "hf_hub:", "http://", "https://")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A parsed SPEC.

    Attributes:
        text: as the user gave it.
        kind: `run` for a folder or file of ours, `timm` for an architecture of timm, `floor` for pixels as they are.
        name: the path, or the name of the architecture or floor.
        random: fresh weights instead of trained ones.
    """

    text: str
    kind: Literal["run", "timm", "floor"]
    name: str
    random: bool


def parse_spec(spec: str) -> ModelSpec:
    """Tell what a SPEC names, without reading it.

    A path that exists counts as it stands, even when it ends in `@random`.

    Raises:
        ConfigError: it is none of the accepted forms, or no such path exists.
    """
    if spec.startswith("timm:"):
        name, at, weights = spec.removeprefix("timm:").partition("@")
        if not at:
            raise ConfigError(
                f"{spec!r} asks for pretrained weights of timm, which are not supported yet; "
                f"timm:{name}@random is the untrained network"
            )
        if weights != "random" or not name:
            raise ConfigError(f"{spec!r} is no model; of timm only timm:NAME@random is accepted. Accepted: {ACCEPTED}")
        return ModelSpec(spec, "timm", name, random=True)
    if spec.startswith("floor:"):
        return ModelSpec(spec, "floor", spec.removeprefix("floor:"), random=False)
    if spec.startswith(_REMOTE):
        raise ConfigError(f"{spec!r} is not supported yet. Accepted: {ACCEPTED}")
    random = spec.endswith(_RANDOM) and not Path(spec).exists()
    name = spec.removesuffix(_RANDOM) if random else spec
    path = Path(name)
    if not name or not path.exists():
        raise ConfigError(f"there is no folder or file {name!r}. Accepted as a model: {ACCEPTED}")
    if path.is_file() and path.suffix != ".pt":
        raise ConfigError(f"{name!r} is a {path.suffix or 'file without suffix'}. Accepted as a model: {ACCEPTED}")
    return ModelSpec(spec, "run", name, random)
