"""CSV files with a line for every query of retrieval, and for places every difficulty."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.atomic import replacing
from patchssl.errors import DataError
from patchssl.evaluate.outcomes import Outcomes
from patchssl.evaluate.queries.revisited_ranks import DIFFICULTIES, RankedQueries

COLUMNS = ("query", "difficulty", "num_positives", "ap", "p_at_1", "p_at_5", "p_at_10", "first_ranks")

_NUM_FIRST = 10


def write_query_table(path: Path, ranked: RankedQueries, values: Mapping[str, NDArray[np.float64]]) -> None:
    """Write the table; it appears whole or not at all.

    Of a query with nothing to find the numbers are empty. `first_ranks` are the places of the first right images, at
    most ten, counted from 1 and without what the difficulty ignores.

    Args:
        path: in a folder that is there.
        ranked: of Q queries.
        values: (Q,) for each metric, as `patchssl.evaluate.retrieval.metric_values` gives them.

    Raises:
        DataError: it cannot be written.
    """
    lines = (
        [name, difficulty, *_cells(ranked, values, number, difficulty)]
        for number, name in enumerate(ranked.names)
        for difficulty in DIFFICULTIES
    )
    _write(path, COLUMNS, lines)


def write_outcome_table(path: Path, outcomes: Outcomes) -> None:
    """Write every metric of every query, empty where a query does not count; the table appears whole or not at all.

    Args:
        path: in a folder that is there.
        outcomes: of Q queries; where they have no names their places stand in.

    Raises:
        DataError: it cannot be written.
    """
    columns = list(outcomes.values.values())
    names = outcomes.ids if outcomes.ids is not None else np.arange(len(columns[0]))
    lines = (
        [name, *("" if np.isnan(value) else float(value) for value in found)]
        for name, *found in zip(names.tolist(), *columns, strict=True)
    )
    _write(path, ("query", *outcomes.values), lines)


def _write(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    try:
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(lines)
    except OSError as error:
        raise DataError(f"the table of queries cannot be written to {path}: {error.strerror or error}") from None


def _cells(ranked: RankedQueries, values: Mapping[str, NDArray[np.float64]], number: int, difficulty: str) -> list[Any]:
    num = int(ranked.num_positives[difficulty][number])
    if num == 0:
        return [num, "", "", "", "", ""]
    numbers = [float(values[f"{name}_{difficulty}"][number]) for name in ("map", "mp_at_1", "mp_at_5", "mp_at_10")]
    first = ranked.ranks[difficulty][number][:_NUM_FIRST] + 1
    return [num, *numbers, " ".join(map(str, first.tolist()))]
