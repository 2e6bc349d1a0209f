"""A table of models by columns in LaTeX, with the rules of the package booktabs."""

from collections.abc import Sequence

from patchssl.cli.grids import FLOORS, Cell, Grid

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"\dag{}",
    "·": r"$\cdot$",
    "µ": r"$\mu$",
}


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def latex(grid: Grid) -> str:
    """A `tabular` and the legend below it."""
    width = 1 + len(grid.cost) + len(grid.header)
    heads = [_stacked(words) for words in grid.header]
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{'l' + 'r' * (width - 1)}}}",
        "\\toprule",
        _joined(["model", *map(escaped, grid.cost), *heads]),
        "\\midrule",
        *(_joined([escaped(line.label), *map(escaped, line.cost), *map(_shown, line.cells)]) for line in grid.models),
    ]
    if grid.floors:
        lines += [
            "\\midrule",
            f"\\multicolumn{{{width}}}{{l}}{{{FLOORS}}} \\\\",
            *(
                _joined([escaped(line.label), *map(escaped, line.cost), *map(_shown, line.cells)])
                for line in grid.floors
            ),
        ]
    lines += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join([*lines, *(f"\\par\\noindent {escaped(said)}" for said in grid.legend)])


def tabular(cells: Sequence[Sequence[str]], alignment: str) -> str:
    """Plain cells, the first line as header."""
    head, *body = [_joined([escaped(text) for text in line]) for line in cells]
    return "\n".join(
        [f"\\begin{{tabular}}{{{alignment}}}", "\\toprule", head, "\\midrule", *body, "\\bottomrule", "\\end{tabular}"]
    )


def _stacked(words: Sequence[str]) -> str:
    return "\\shortstack[r]{" + " \\\\ ".join(map(escaped, words)) + "}"


def _joined(texts: Sequence[str]) -> str:
    return " & ".join(texts) + " \\\\"


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value = f"\\textbf{{{cell.value}}}" if cell.bold else cell.value
    sign = f"$^{{{_SIGNS[cell.sign]}}}$" if cell.sign in _SIGNS else escaped(cell.sign)
    return value + sign + (f" ({cell.interval})" if cell.interval else "")


_SIGNS = {"*": "*", "=": "=", "~": "\\sim"}
