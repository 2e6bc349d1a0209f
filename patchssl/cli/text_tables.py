"""Cells of text → a table in plain text or Markdown."""

from collections.abc import Collection, Sequence

import click


def aligned(
    cells: Sequence[Sequence[str]],
    *,
    num_left: int = 0,
    left_last: bool = False,
    bold: Collection[tuple[int, int]] = frozenset(),
) -> str:
    """Columns side by side, flush right.

    Args:
        cells: lines of equally many cells.
        num_left: how many columns, from the first, are flush left.
        left_last: whether the last one is as well.
        bold: line and column of the cells to embolden; where stdout is no terminal, `click.echo` takes that out.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for place, line in enumerate(cells):
        texts = [
            text.ljust(width) if column < num_left or (left_last and column == len(line) - 1) else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts[-1] = texts[-1].rstrip()
        styled = [
            click.style(text, bold=True) if (place, column) in bold else text for column, text in enumerate(texts)
        ]
        lines.append("  ".join(styled).rstrip())
    return "\n".join(lines)


def markdown(cells: Sequence[Sequence[str]], *, num_left: int = 0) -> str:
    """A Markdown table; the first line is the header."""
    rule = ["---" if column < num_left else "---:" for column in range(len(cells[0]))]
    return "\n".join(
        "| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in [cells[0], rule, *cells[1:]]
    )
