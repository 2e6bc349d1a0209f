"""Comparisons of two models on stdout, with the verdict in words."""

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import click

from patchssl.cli.text_tables import aligned, markdown

if TYPE_CHECKING:
    from patchssl.evaluate.comparing.comparison import Difference
    from patchssl.evaluate.comparing.pairs import Comparison, Comparisons

_SMALLEST_P = 0.001


def print_comparisons(found: "Comparisons", output_format: str) -> None:
    """Print what two models have in common.

    Args:
        found: of `patchssl.evaluate.comparing.pairs.compare_models`.
        output_format: `table` and `markdown` show percent and points; `json`, one object with the lists `compared` (a
            record for each metric) and `refused`, and `csv`, a line for each metric, hold fractions.
    """
    if output_format == "json":
        document = {"a": found.a, "b": found.b, "compared": _records(found), "refused": _refused(found)}
        click.echo(json.dumps(document, indent=2))
    elif output_format == "csv":
        click.echo(_csv(_records(found)), nl=False)
    else:
        click.echo(_for_people(found, output_format))


def verdict(difference: "Difference") -> str:
    """Which is better and by how many points, or that the images do not tell."""
    low, high = 100 * difference.ci95_low, 100 * difference.ci95_high
    unpaired = "" if difference.unpaired is None else ", unpaired"
    if not difference.separable:
        return f"not separable: {100 * difference.value:+.1f} points ({low:+.1f} to {high:+.1f}{unpaired})"
    better, sign = ("A", 1) if difference.value > 0 else ("B", -1)
    ends = sorted((sign * low, sign * high))
    return (
        f"{better} is better by {sign * 100 * difference.value:.1f} points ({ends[0]:.1f} to {ends[1]:.1f}{unpaired})"
    )


def _for_people(found: "Comparisons", output_format: str) -> str:
    as_markdown = output_format == "markdown"
    gap = "  \n" if as_markdown else "\n"
    parts = [gap.join([f"A = {found.a}", f"B = {found.b}"])]
    for one in found.compared:
        cells = [["metric", "A", "B", "p", "verdict"], *_lines(one)]
        parts.append(f"{one.column.name}, percent{gap}{_basis(one)}")
        parts.append(markdown(cells, num_left=1) if as_markdown else aligned(cells, num_left=1, left_last=True))
    if found.refused:
        refused = "\n".join(f"- {one}" for one in found.refused)
        parts.append(f"Not compared, because the numbers mean different things:\n\n{refused}")
    return "\n\n".join(parts)


def _lines(one: "Comparison") -> list[list[str]]:
    return [
        [
            name,
            f"{100 * one.a.metrics[name].value:.2f}",
            f"{100 * one.b.metrics[name].value:.2f}",
            f"{difference.p_value:.3f}" if difference.p_value >= _SMALLEST_P else f"<{_SMALLEST_P}",
            verdict(difference),
        ]
        for name, difference in one.differences.items()
    ]


def _basis(one: "Comparison") -> str:
    """Which rows were compared, and on what."""
    rows = f"rows {one.a.id} and {one.b.id}"
    reasons = list(dict.fromkeys(found.unpaired for found in one.differences.values() if found.unpaired is not None))
    nums = list(dict.fromkeys(found.num for found in one.differences.values() if found.num is not None))
    draws = list(dict.fromkeys(found.num_draws for found in one.differences.values() if found.num_draws is not None))
    said = [f"paired over {' or '.join(f'{num:,}' for num in nums)} test images"] if nums else []
    said += [f"{' or '.join(map(str, draws))} draws of training images"] if draws else []
    said += [f"unpaired, by the rows' own intervals: {'; '.join(reasons)}"] if reasons else []
    return f"{rows}, {'; '.join(said)}"


def _records(found: "Comparisons") -> list[dict[str, Any]]:
    return [
        {
            "task": one.column.task,
            "protocol": one.column.protocol,
            "dataset": one.column.dataset,
            "told_apart": one.column.words,
            "metric": name,
            "a": one.a.metrics[name].value,
            "b": one.b.metrics[name].value,
            "difference": difference.value,
            "ci95_low": difference.ci95_low,
            "ci95_high": difference.ci95_high,
            "p_value": difference.p_value,
            "separable": difference.separable,
            "verdict": verdict(difference),
            "num": difference.num,
            "unpaired": difference.unpaired,
            "num_draws": difference.num_draws,
            "row_id_a": one.a.id,
            "row_id_b": one.b.id,
            "comparability": one.column.comparability,
        }
        for one in found.compared
        for name, difference in one.differences.items()
    ]


def _refused(found: "Comparisons") -> list[dict[str, str]]:
    return [
        {
            "task": one.task,
            "dataset": one.dataset,
            "row_id_a": one.a.id,
            "row_id_b": one.b.id,
            "differing": one.differing,
        }
        for one in found.refused
    ]


def _csv(records: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()
