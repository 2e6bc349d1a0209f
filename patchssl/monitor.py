"""What a run writes down about itself while it goes on."""

import json
from collections.abc import Mapping
from pathlib import Path

from patchssl.errors import CheckpointError


class MetricsFile:
    """`metrics.jsonl`: one line for each logged step, appended and flushed at once."""

    def __init__(self, path: Path) -> None:
        """Open for appending."""
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, float | int]) -> None:
        """Append a line.

        Raises:
            CheckpointError: the disk is full.
        """
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self._path}: {error.strerror}; free some space and --resume"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
