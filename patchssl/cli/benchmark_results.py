"""What comes of a benchmark: recorded as it comes, shown, and failures told."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from patchssl.cli.failures import describe, is_unforeseen
from patchssl.cli.output import print_rows
from patchssl.cli.tables import print_table
from patchssl.errors import PatchsslError

if TYPE_CHECKING:
    from patchssl.evaluate.outcomes import Outcomes
    from patchssl.evaluate.results import Row
    from patchssl.evaluate.suite import Result
    from patchssl.evaluate.suites.plan import Failure

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a suite.

    Attributes:
        rows: in the order in which they came.
        outcomes: of the images of each row that was made now, by its id.
        failures: in the order in which they came.
    """

    rows: "list[Row]" = field(default_factory=list)
    outcomes: "dict[str, Outcomes]" = field(default_factory=dict)
    failures: "list[Failure]" = field(default_factory=list)


def collect(results: "Iterable[Result]", directory: Path | None) -> Found:
    """Record results as they come, and keep what came."""
    from patchssl.evaluate.outcomes import record
    from patchssl.evaluate.suite import Skipped
    from patchssl.evaluate.suites.plan import Failure

    found = Found()
    try:
        for result in results:
            if isinstance(result, Failure):
                found.failures.append(result)
                logger.info("failed: %s", _told(result))
                continue
            if not isinstance(result, Skipped):
                found.outcomes[result.row.id] = result.outcomes
                if directory is not None:
                    record(directory, result)
            found.rows.append(result.row)
    except KeyboardInterrupt:
        if directory is not None:
            logger.warning("interrupted; %d results are in %s: go on with --skip-done", len(found.rows), directory)
        raise
    return found


def show(found: Found, directory: Path, output_format: str, *, cost: bool) -> None:
    """Print what came: as JSON the rows, otherwise the table.

    Args:
        found: what came.
        directory: where the outcomes of rows lie that were there before.
        output_format: as in `patchssl.cli.tables.print_table`.
        cost: with parameters, GFLOPs and images/s.
    """
    from patchssl.evaluate.comparing.tables import build_table
    from patchssl.evaluate.outcomes import read_outcomes

    if output_format == "json":
        print_rows(found.rows, output_format)
    elif found.rows or output_format == "csv":
        table = build_table(
            found.rows, outcomes=lambda row: found.outcomes.get(row.id) or read_outcomes(directory, row), cost=cost
        )
        print_table(table, output_format)


def report(failures: "Sequence[Failure]", num_rows: int) -> None:
    """A line for each failure.

    Raises:
        PatchsslError: there are failures.
    """
    if not failures:
        return
    for failure in failures:
        logger.error("failed: %s", _told(failure))
    raise PatchsslError(
        f"{len(failures)} {'failure' if len(failures) == 1 else 'failures'} of the benchmark, listed above; "
        f"{num_rows} results are there. Mend what is named and run again with --skip-done"
    ) from failures[0].error


def _told(failure: "Failure") -> str:
    more = " (run again with --debug for the traceback)" if is_unforeseen(failure.error) else ""
    return f"{', '.join(failure.tasks)}, {failure.model or 'all models'}: {describe(failure.error)}{more}"
