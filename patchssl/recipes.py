"""Configurations from YAML files and those of the package, with errors that name what is allowed."""

import difflib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from patchssl.config import Config
from patchssl.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

RECIPES = "pretrain"
SUITES = "evaluate"
_TOLD = {RECIPES: "recipe", SUITES: "suite"}


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return config_names(RECIPES)


def config_names(folder: str) -> list[str]:
    """The names of the YAML files in a folder of the package's configurations."""
    files = (resources.files("patchssl.configs") / folder).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


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
    """Validate a nested mapping as a pretraining configuration.

    Raises:
        ConfigError: names every offending key, with what is allowed.
    """
    return validate(Config, values, origin=origin)


def validate(model: type[Model], values: Mapping[str, Any], *, origin: str) -> Model:
    """Validate a nested mapping.

    Args:
        model: what it must be.
        values: the mapping.
        origin: where it comes from, for the message.

    Raises:
        ConfigError: names every offending key, with what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_explain(model, dict(e)) for e in error.errors())) from None


def dump_config(config: Config) -> str:
    """The configuration as YAML, complete and in the order of the sections."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _with_base(source: str, depth: int = 0) -> dict[str, Any]:
    """Read a file and what it builds on: its key `base` names a recipe or file, of which it changes single keys."""
    values = read_yaml(source, RECIPES)
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


def read_yaml(source: str, folder: str) -> dict[str, Any]:
    """Read a YAML mapping.

    Args:
        source: a file, or a name in a folder of the package's configurations.
        folder: that folder.

    Raises:
        ConfigError: it is neither, or holds no mapping.
    """
    path, told = Path(source), _TOLD[folder]
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif source in (names := config_names(folder)):
        text = (resources.files("patchssl.configs") / folder / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(f"{source!r} is neither a file nor a {told}; {told}s: {', '.join(names)}")
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


def _explain(root: type[BaseModel], error: dict[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    name = ".".join(location)
    if error["type"] == "union_tag_invalid":
        context = error["ctx"]
        key = f"{name}.{context['discriminator'].strip(chr(39))}"
        allowed = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        return f"{key} is {context['tag']!r}; {_near(context['tag'], allowed)}allowed: {', '.join(allowed)}"
    if error["type"] == "union_tag_not_found":
        return f"{name} lacks the key {error['ctx']['discriminator'].strip(chr(39))}"
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        came = "" if error["type"] == "value_error" else f" (it is {error['input']!r})"
        return f"{name}: {message}{came}" if name else f"{message}{came}"
    allowed = list(_model_at(root, location[:-1]).model_fields)
    return f"unknown key {name}; {_near(location[-1], allowed)}allowed: {', '.join(allowed)}"


def _near(came: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(came, allowed, n=1)
    return f"did you mean {close[0]}? " if close else ""


def _model_at(root: type[BaseModel], location: list[str]) -> type[BaseModel]:
    """The model that pydantic names by fields, places in lists, and the tags that choose between several."""
    found: Any = root
    for part in location:
        if isinstance(found, type) and issubclass(found, BaseModel):
            found = found.model_fields[part].annotation
        elif get_origin(found) in (list, tuple):
            found = get_args(found)[0]
        else:
            found = next(model for model in _models_in(found) if _has_tag(model, part))
    models = _models_in(found)
    assert len(models) == 1
    return models[0]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation allows, however they are wrapped."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return any(
        get_origin(field.annotation) is Literal and get_args(field.annotation) == (tag,)
        for field in model.model_fields.values()
    )
