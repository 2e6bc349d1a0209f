"""What a process that reads images is at, noted where others can see it after its death."""

import ctypes
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# A name of a file has at most 4,096 bytes.
_MOST_BYTES = 4_500
_PID_BYTES, _LENGTH_BYTES = 8, 2
_SLOT_BYTES = _PID_BYTES + _LENGTH_BYTES + _MOST_BYTES


class Notes:
    """A note for each of several processes, in memory that they share."""

    def __init__(self, num: int) -> None:
        """Make room for so many."""
        self._memory: Any = multiprocessing.RawArray(ctypes.c_char, num * _SLOT_BYTES)

    @contextmanager
    def taken(self, number: int, pid: int) -> Iterator[None]:
        """What is noted inside is that of the process of a number, from 0; afterwards it is at nothing."""
        start = number * _SLOT_BYTES
        self._memory[start : start + _PID_BYTES] = pid.to_bytes(_PID_BYTES, "little")
        token = _current.set((self, start + _PID_BYTES))
        try:
            yield
        finally:
            _current.reset(token)
            self.write(start + _PID_BYTES, "")

    def write(self, start: int, text: str) -> None:
        """Replace the note at a place."""
        content = text.encode(errors="surrogateescape")[:_MOST_BYTES]
        behind = start + _LENGTH_BYTES
        # Whoever reads it after a death in the middle finds none.
        self._memory[start:behind] = bytes(_LENGTH_BYTES)
        self._memory[behind : behind + len(content)] = content
        self._memory[start:behind] = len(content).to_bytes(_LENGTH_BYTES, "little")

    def of(self, pid: int) -> str:
        """What a process was at last; nothing if it was waiting or never took a number."""
        for start in range(0, len(self._memory), _SLOT_BYTES):
            slot: bytes = self._memory[start : start + _SLOT_BYTES]
            if int.from_bytes(slot[:_PID_BYTES], "little") == pid:
                text = slot[_PID_BYTES + _LENGTH_BYTES :]
                return text[: int.from_bytes(slot[_PID_BYTES:][:_LENGTH_BYTES], "little")].decode(
                    errors="surrogateescape"
                )
        return ""


# Of this thread of this process: whose note it is, and where.
_current: ContextVar[tuple[Notes, int] | None] = ContextVar("current", default=None)


def note(text: str) -> None:
    """Say what is being done, in the past tense, as in `read a.jpg`; where nobody takes notes nothing happens."""
    current = _current.get()
    if current is not None:
        notes, start = current
        notes.write(start, text)
