"""Two models' names → which rows of theirs may be compared, what that says, and which may not be compared and why."""

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.comparing.columns import Column, columns_of, data_key, differing, newest
from patchssl.evaluate.comparing.comparison import Difference, compare
from patchssl.evaluate.outcomes import Outcomes
from patchssl.evaluate.results import Row

logger = logging.getLogger(__name__)

_FEWEST_DIGITS = 4
_NUM_NAMED = 8


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows of both models that mean the same.

    Attributes:
        column: task, protocol, data set, and what tells it from others.
        a: the first model's row.
        b: the second's.
        differences: first minus second, by metric.
    """

    column: Column
    a: Row
    b: Row
    differences: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class Refused:
    """Rows of both models that mean different things.

    Attributes:
        task: of both.
        dataset: of both.
        a: a row of the first model.
        b: one of the second.
        differing: the settings in which they differ.
    """

    task: str
    dataset: str
    a: Row
    b: Row
    differing: str

    def __str__(self) -> str:
        return f"{self.task} on {self.dataset}: {self.differing}"


@dataclass(frozen=True, slots=True)
class Comparisons:
    """What two models have in common.

    Attributes:
        a: what the user called the first model.
        b: the second.
        compared: at least one.
        refused: rows without a counterpart of equal comparability.
    """

    a: str
    b: str
    compared: tuple[Comparison, ...]
    refused: tuple[Refused, ...]


def compare_models(
    rows: Sequence[Row],
    a: str,
    b: str,
    outcomes: Callable[[Row], Outcomes | None],
    *,
    metric: str | None = None,
    seed: int = 0,
) -> Comparisons:
    """Compare the newest rows of two models wherever both have one of equal comparability.

    Args:
        rows: of these and other models.
        a: SPEC of the first model, or the beginning of a row's id.
        b: the same of the second.
        outcomes: gives what came of each image of a row, or None.
        metric: only this one; None for every one that both rows have.
        seed: of the bootstrap.

    Raises:
        ConfigError: a name is unknown or ambiguous, or no row has the metric.
        DataError: no two rows may be compared, or outcomes are damaged.
    """
    chosen = [_rows_of(name, rows) for name in (a, b)]
    columns = columns_of(rows)
    of_a, of_b = (
        [(column, _only(column, part, name)) for column in columns] for part, name in zip(chosen, (a, b), strict=True)
    )
    compared = []
    for (column, row_a), (_, row_b) in zip(of_a, of_b, strict=True):
        if row_a is not None and row_b is not None:
            differences = compare(row_a, row_b, (outcomes(row_a), outcomes(row_b)), seed=seed)
            kept = {name: found for name, found in differences.items() if metric in (None, name)}
            compared.append(Comparison(column, row_a, row_b, kept))
    refused = _refused([row for _, row in of_a if row is not None], [row for _, row in of_b if row is not None])
    if not compared:
        raise DataError(_nothing_in_common(a, b, chosen, refused))
    if metric is not None and not any(one.differences for one in compared):
        there = sorted({name for one in compared for name in one.a.metrics})
        raise ConfigError(f"no two rows have the metric {metric!r}; they have: {', '.join(there)}")
    return Comparisons(a, b, tuple(one for one in compared if one.differences), tuple(refused))


def _rows_of(name: str, rows: Sequence[Row]) -> list[Row]:
    """The newest rows of a SPEC, or the one row whose id begins so."""
    found = newest(row for row in rows if row.model["spec"] == name)
    if found:
        return found
    begun = [row for row in rows if row.id.startswith(name)] if len(name) >= _FEWEST_DIGITS else []
    ids = {row.id: row for row in begun}
    if len(ids) > 1:
        raise ConfigError(f"{name!r} begins the ids of several rows; give more digits: {_listed(list(ids.values()))}")
    if ids:
        return list(ids.values())
    specs = sorted({row.model["spec"] for row in rows})
    near = difflib.get_close_matches(name, specs, n=3) or specs[:_NUM_NAMED]
    raise ConfigError(
        f"no row is of a model {name!r}, and no row id begins so; models are: {', '.join(near)}"
        + (f" and {len(specs) - len(near)} more" if len(specs) > len(near) else "")
    )


def _only(column: Column, rows: Sequence[Row], name: str) -> Row | None:
    """The row of a model in a column."""
    found = [row for row in rows if any(row is one for one in column.rows)]
    if len(found) > 1:
        raise ConfigError(
            f"{name!r} names models of {len(found)} different weights in {column.name}; name one by its row's id: "
            f"{_listed(found)}"
        )
    return found[0] if found else None


def _listed(rows: Sequence[Row]) -> str:
    named = [
        f"{row.id} ({row.model['spec']}, {row.task}, seed {row.seed}, weights "
        f"{str(row.model.get('weights_sha256'))[:8]}, {row.created})"
        for row in rows[:_NUM_NAMED]
    ]
    return "; ".join(named) + (f" and {len(rows) - _NUM_NAMED} more" if len(rows) > _NUM_NAMED else "")


def _refused(of_a: Sequence[Row], of_b: Sequence[Row]) -> list[Refused]:
    """Rows of one task and data set, at least one of which has no counterpart of equal comparability."""
    shared = {row.comparability for row in of_a} & {row.comparability for row in of_b}
    return [
        Refused(a.task, a.dataset["name"], a, b, differing([a], [b]))
        for a in of_a
        for b in of_b
        if a.task == b.task
        and (a.dataset["name"] == b.dataset["name"] or data_key(a) == data_key(b))
        and a.comparability != b.comparability
        and not (a.comparability in shared and b.comparability in shared)
    ]


def _nothing_in_common(a: str, b: str, chosen: Sequence[Sequence[Row]], refused: Sequence[Refused]) -> str:
    if refused:
        told = "; ".join(str(one) for one in refused[:_NUM_NAMED])
        return (
            f"no rows of {a} and {b} may be compared, because they differ in settings that change what the numbers "
            f"mean ({told}); evaluate one of them again with the settings of the other"
        )
    has = [", ".join(sorted({f"{row.task} on {row.dataset['name']}" for row in part})) for part in chosen]
    return f"{a} and {b} have no task and data set in common: {a} has {has[0]}; {b} has {has[1]}"
