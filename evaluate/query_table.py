"""A CSV file with a line for every query and difficulty of retrieval of places."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.atomic import replacing
from patchssl.errors import DataError
from patchssl.evaluate.revisited_ranks import DIFFICULTIES, RankedQueries

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
    try:
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for number, name in enumerate(ranked.names):
                for difficulty in DIFFICULTIES:
                    writer.writerow([name, difficulty, *_cells(ranked, values, number, difficulty)])
    except OSError as error:
        raise DataError(f"the table of queries cannot be written to {path}: {error.strerror or error}") from None


def _cells(ranked: RankedQueries, values: Mapping[str, NDArray[np.float64]], number: int, difficulty: str) -> list[Any]:
    num = int(ranked.num_positives[difficulty][number])
    if num == 0:
        return [num, "", "", "", "", ""]
    numbers = [float(values[f"{name}_{difficulty}"][number]) for name in ("map", "mp_at_1", "mp_at_5", "mp_at_10")]
    first = ranked.ranks[difficulty][number][:_NUM_FIRST] + 1
    return [num, *numbers, " ".join(map(str, first.tolist()))]
