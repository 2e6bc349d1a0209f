"""Rows sorted by column and by model: which may stand together, and in words what tells them apart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from patchssl.evaluate.results import NOT_COMPARED, Row, canonical_hash

# Follows from the data, or names further numbers of the same row.
_NO_CAUSE = NOT_COMPARED | {"num_unknown_class", "k"}
_NUM_DIGITS = 8
_UNTRAINED_SPEC = "@random"
MODEL, FLOOR, UNTRAINED = "model", "floor", "untrained"


@dataclass(frozen=True, slots=True)
class Column:
    """Rows of one task, protocol, data set and comparability.

    Attributes:
        task: of all rows.
        protocol: of all rows.
        dataset: the name of the data set, that of the first row of these images.
        comparability: of all rows.
        rows: at least one, in the order in which they came.
        told_apart: what tells this column from others of the same task and data set, by name.
    """

    task: str
    protocol: str
    dataset: str
    comparability: str
    rows: tuple[Row, ...]
    told_apart: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What tells this column apart, such as `image_px 224`; empty where nothing has to."""
        return ", ".join(f"{name} {value}".strip() for name, value in self.told_apart.items())

    @property
    def name(self) -> str:
        """Task, protocol, data set, and what tells the column apart."""
        return f"{self.task} ({self.protocol}) on {self.dataset}" + (f", {self.words}" if self.words else "")


def model_key(row: Row) -> tuple[str, str]:
    """What two rows of one model share: its SPEC and its weights."""
    return row.model["spec"], str(row.model.get("weights_sha256"))


def kind_of(row: Row) -> str:
    """`model`, `floor` or `untrained`."""
    if row.model.get("family") == "floor":
        return FLOOR
    return UNTRAINED if row.model["spec"].endswith(_UNTRAINED_SPEC) else MODEL


def labels_of(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """The SPEC of each model; where other weights have the same, with the network, the seed or the weights' hash."""
    specs: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        specs.setdefault(row.model["spec"], {}).setdefault(model_key(row), row)
    names = {}
    for spec, models in specs.items():
        choices = [
            [str(row.settings.get("checkpoint_key")) for row in models.values()],
            [f"seed {row.seed}" for row in models.values()] if spec.endswith(_UNTRAINED_SPEC) else [],
            [f"weights {weights[:_NUM_DIGITS]}" for _, weights in models],
        ]
        told = next((words for words in choices if len(set(words)) == len(models)), choices[-1])
        names.update({key: f"{spec} ({word})" for key, word in zip(models, told, strict=True)})
        if len(models) == 1:
            names[next(iter(models))] = spec
    return {model_key(row): names[model_key(row)] for row in rows}


def selected_by_test(row: Row) -> frozenset[str]:
    """The metrics of a row for which something was chosen by the test images."""
    names = row.details.get("test_selected")
    return frozenset(map(str, names)) if isinstance(names, Sequence) and not isinstance(names, str) else frozenset()


def newest(rows: Iterable[Row]) -> list[Row]:
    """The newest row of each model, task, protocol and comparability; of one second, the last.

    Returns:
        In the order in which the first of each came.
    """
    chosen: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (*_column_key(row), *model_key(row))
        if key not in chosen or row.created >= chosen[key].created:
            chosen[key] = row
    return list(chosen.values())


def columns_of(rows: Iterable[Row]) -> list[Column]:
    """Sort rows into columns, in the order in which they came, columns of one task and data set side by side.

    Images that lie in folders of several names go by the first.
    """
    names: dict[str, str] = {}
    groups: dict[tuple[str, str], dict[tuple[str, str, str], list[Row]]] = {}
    for row in rows:
        name = names.setdefault(data_key(row), row.dataset["name"])
        groups.setdefault((row.task, name), {}).setdefault(_column_key(row), []).append(row)
    found = []
    for (task, name), columns in groups.items():
        # Another protocol stands in the column's name already.
        protocols: dict[str, list[tuple[Row, ...]]] = {}
        for (_, protocol, _), part in columns.items():
            protocols.setdefault(protocol, []).append(tuple(part))
        for protocol, parts in protocols.items():
            found += [
                Column(task, protocol, name, part[0].comparability, part, words)
                for part, words in zip(parts, _tell_apart(parts), strict=True)
            ]
    return found


def differing(a: Sequence[Row], b: Sequence[Row]) -> str:
    """In which settings two sets of rows of unequal comparability differ, such as `image_px 224 against 32`."""
    first, second = _tell_apart([tuple(a), tuple(b)])
    return ", ".join(f"{name} {first[name]} against {second[name]}".strip() for name in first)


def _column_key(row: Row) -> tuple[str, str, str]:
    # Comparability follows from the images, so that their name, which users choose, needs no place here.
    return row.task, row.protocol, row.comparability


def data_key(row: Row) -> str:
    """What two rows of the same images share, whatever their folder is called."""
    return str(row.dataset.get("fingerprint") or row.dataset["name"])


def _tell_apart(parts: Sequence[tuple[Row, ...]]) -> list[dict[str, str]]:
    """For each of several sets of rows: the facts that tell it from the others, of the same names for all.

    What varies within one comparability cannot have made another one, and is left out.
    """
    if len(parts) < 2:
        return [{} for _ in parts]
    facts = [[_facts(row) for row in part] for part in parts]
    names = list(dict.fromkeys(name for part in facts for row in part for name in row))
    values = {
        name: [{canonical_hash(row.get(name)): row.get(name) for row in part} for part in facts] for name in names
    }
    found = {
        name: [next(iter(part.values())) for part in held]
        for name, held in values.items()
        if all(len(part) == 1 for part in held) and len({next(iter(part)) for part in held}) > 1
    }
    if "images" in found:
        # The place says more than the hash, where it does not lie the same for both.
        found.pop("path" if len({str(path) for path in found.get("path", [])}) < len(parts) else "images", None)
    else:
        found.pop("path", None)
    if not found:
        hashes = [part[0].comparability[:_NUM_DIGITS] for part in parts]
        return [{"a setting that the rows do not hold, comparability": text} for text in hashes]
    return [{name: _text(held[place]) for name, held in found.items()} for place in range(len(parts))]


def _facts(row: Row) -> dict[str, Any]:
    splits = row.dataset.get("splits", {})
    return {
        "protocol": row.protocol,
        **{name: value for name, value in row.settings.items() if name not in _NO_CAUSE},
        "headline": row.headline,
        **{f"{name} images": size for name, size in (splits.items() if isinstance(splits, Mapping) else ())},
        "path": row.dataset.get("path_name"),
        "images": str(row.dataset.get("fingerprint"))[:_NUM_DIGITS],
    }


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(_text(part) for part in value)
    return str(value)
