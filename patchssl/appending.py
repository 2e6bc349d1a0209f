"""Files to which whole lines are appended."""

import os
from pathlib import Path

_BLOCK_BYTES = 1 << 16


class AppendedLines:
    """A file of lines that ends with a whole one, whatever becomes of the process that writes it."""

    def __init__(self, path: Path) -> None:
        """Open a file, or make it; a line that was being written when a process was killed is cut off.

        Raises:
            OSError: it cannot be opened.
        """
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._handle).st_size
        whole = _end_of_last_line(self._handle, size)
        if whole < size:
            os.ftruncate(self._handle, whole)

    def write(self, line: str) -> None:
        """Append a line at once, or nothing of it.

        Args:
            line: without its end.

        Raises:
            OSError: the disk is full.
        """
        data = line.encode("utf-8", errors="backslashreplace") + b"\n"
        size = os.fstat(self._handle).st_size
        try:
            written = os.write(self._handle, data)
            while written < len(data):
                written += os.write(self._handle, data[written:])
        except BaseException:
            os.ftruncate(self._handle, size)
            raise

    def close(self) -> None:
        """Close the file; may be called again."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


def _end_of_last_line(handle: int, size: int) -> int:
    """How many bytes there are up to and with the last end of a line."""
    end = size
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
