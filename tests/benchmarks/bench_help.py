"""Time of `--help` for every command, beside that of an empty Python: `python tests/benchmarks/bench_help.py`."""

import subprocess
import sys
import time
from collections.abc import Iterator

import click

from patchssl.cli.main import root

REPEATS = 5


def command_paths(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of the tree as the words that lead to it."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from command_paths(child, (*path, name))


def best_of(command: list[str]) -> float:
    """The quickest of some runs, in seconds."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    print(f"{best_of([sys.executable, '-c', 'pass']) * 1000:6.0f} ms  python -c pass")
    for words in command_paths(root):
        line = ["patchssl", *words, "--help"]
        print(f"{best_of([sys.executable, '-m', *line]) * 1000:6.0f} ms  {' '.join(line)}")
