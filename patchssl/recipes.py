"""Configurations from YAML files and the recipes of the package, with errors that name what is allowed."""

import difflib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from patchssl.config import Config
from patchssl.errors import ConfigError


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _recipes().iterdir() if file.name.endswith(".yaml"))


def load_config(source: str | None, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration and apply overrides to it.

    Args:
        source: a YAML file, or the name of a recipe of the package; None for the defaults.
        overrides: `section.key=value`, the value in YAML.

    Raises:
        ConfigError: the file is missing or no YAML mapping, a key is unknown or a value not allowed.
    """
    values = _with_base(source) if source is not None else {}
    for override in overrides:
        _override(values, override)
    return parse_config(values, origin=source or "the configuration")


def parse_config(values: Mapping[str, Any], *, origin: str = "the configuration") -> Config:
    """Validate a nested mapping.

    Raises:
        ConfigError: names every offending key, with what is allowed.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_explain(dict(e)) for e in error.errors())) from None


def dump_config(config: Config) -> str:
    """The configuration as YAML, complete and in the order of the sections."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _recipes() -> Any:
    return resources.files("patchssl.configs") / "pretrain"


def _with_base(source: str, depth: int = 0) -> dict[str, Any]:
    """Read a file and what it builds on: its key `base` names a recipe or file, of which it changes single keys."""
    values = _read(source)
    base = values.pop("base", None)
    if base is None:
        return values
    if depth == 8:
        raise ConfigError(f"{source}: bases are nested more than 8 deep; does one name itself?")
    beside = Path(source).parent / str(base)
    merged = _with_base(str(beside) if Path(source).is_file() and beside.is_file() else str(base), depth + 1)
    for section, changes in values.items():
        known = merged.get(section)
        merged[section] = {**known, **changes} if isinstance(known, dict) and isinstance(changes, dict) else changes
    return merged


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif source in recipe_names():
        text = (_recipes() / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(f"{source!r} is neither a file nor a recipe; recipes: {', '.join(recipe_names())}")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source} holds a {type(values).__name__}; a configuration is a mapping of sections")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or len(keys) != 2 or not all(keys):
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, for instance train.epochs=10")
    section = values.setdefault(keys[0], {})
    if not isinstance(section, dict):
        raise ConfigError(f"--set {override!r}: {keys[0]} holds a value, no keys")
    try:
        section[keys[1]] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value") from None


def _explain(error: dict[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    name = ".".join(location)
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        came = "" if error["type"] == "value_error" else f" (it is {error['input']!r})"
        return f"{name}: {message}{came}" if name else f"{message}{came}"
    model: type[BaseModel] = Config
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type)
        model = annotation
    allowed = list(model.model_fields)
    close = difflib.get_close_matches(location[-1], allowed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown key {name}; {hint}allowed: {', '.join(allowed)}"
