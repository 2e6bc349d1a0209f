"""Brace patterns, as shells expand them: {000..127} and {train,val}."""

import re
from collections.abc import Iterator

from patchssl.errors import DataError

MAX_EXPANDED = 100_000

_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")


def expand_braces(pattern: str) -> list[str]:
    """All texts that a pattern stands for, in the order in which it counts.

    `{000..127}` counts, up or down, with leading zeros where either end has them; `{0..10..2}` counts by twos;
    `{a,b}` names; braces may stand inside each other. Others, such as `{a}`, stand for themselves.

    Raises:
        DataError: it stands for more than MAX_EXPANDED.
    """
    found = []
    for text in _expanded(pattern):
        found.append(text)
        if len(found) > MAX_EXPANDED:
            raise DataError(f"{pattern} stands for more than {MAX_EXPANDED:,} files; give a narrower pattern")
    return found


def _expanded(pattern: str) -> Iterator[str]:
    start = pattern.find("{")
    while start >= 0:
        end = _closing(pattern, start)
        options = None if end < 0 else _options(pattern[start + 1 : end])
        if options is not None:
            for option in options:
                for rest in _expanded(pattern[end + 1 :]):
                    yield pattern[:start] + option + rest
            return
        start = pattern.find("{", start + 1)
    yield pattern


def _closing(pattern: str, start: int) -> int:
    """Where the brace at start ends; -1 nowhere."""
    depth = 0
    for place in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            return place
    return -1


def _options(inside: str) -> Iterator[str] | None:
    """What a pair of braces stands for; None: for itself."""
    if numbers := _NUMBERS.fullmatch(inside):
        return _counted(*numbers.groups())
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(inside[start:place])
            start = place + 1
    if not parts:
        return None
    return (text for part in (*parts, inside[start:]) for text in _expanded(part))


def _counted(first: str, last: str, step: str | None) -> Iterator[str]:
    start, end, by = int(first), int(last), abs(int(step or 1)) or 1
    padded = any(re.match(r"-?0\d", text) for text in (first, last))
    width = max(len(first), len(last)) if padded else 0
    numbers = range(start, end + 1, by) if start <= end else range(start, end - 1, -by)
    return (f"{number:0{width}d}" for number in numbers)
