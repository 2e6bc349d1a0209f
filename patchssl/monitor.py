"""What a run writes down about itself while it goes on."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from patchssl.appending import AppendedLines
from patchssl.errors import CheckpointError
from patchssl.ranks import is_main


class MetricsFile:
    """`metrics.jsonl`: one line for each logged step, appended at once and whole, by the main process."""

    def __init__(self, path: Path) -> None:
        """Open for appending; a line that was being written when a process was killed is cut off.

        Raises:
            CheckpointError: it cannot be opened.
        """
        self._path = path
        with self._told():
            self._lines = AppendedLines(path) if is_main() else None

    def write(self, values: Mapping[str, float | int]) -> None:
        """Append a line; a number that is not finite, which JSON has no word for, becomes null.

        Raises:
            CheckpointError: the disk is full.
        """
        if self._lines is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._told():
            self._lines.write(json.dumps(finite, allow_nan=False))

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self._path}: {error.strerror}; free some space and go on with --resume"
            ) from None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl` by step, the last of each step counting; none where there is no file.

    A last line that a crash has cut short is left out.
    """
    if not path.exists():
        return []
    lines: dict[float, dict[str, float]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            values = json.loads(text)
            lines[values["step"]] = values
    return [lines[step] for step in sorted(lines)]
