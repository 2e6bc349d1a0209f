"""What rows tell of scores that are reached without a network."""

import logging
from collections.abc import Mapping, Sequence

from patchssl.evaluate.results import Row

logger = logging.getLogger(__name__)

# Details of rows that hold a value for each metric, and what a table calls them.
BASELINES = {"chance": "chance", "position": "position alone", "raw_patches": "raw patches"}


def baselines_of(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """The value of each baseline that rows of one column tell, by its name in tables.

    Where rows tell different values, none is given.
    """
    found = {}
    for detail, label in BASELINES.items():
        told = {value for row in rows if (value := _told(row, detail, metric)) is not None}
        if len(told) == 1:
            found[label] = told.pop()
        elif told:
            logger.warning("rows of %s (%s) give %s as %s; none is shown", rows[0].task, metric, sorted(told), label)
    return found


def _told(row: Row, detail: str, metric: str) -> float | None:
    values = row.details.get(detail)
    value = values.get(metric) if isinstance(values, Mapping) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
