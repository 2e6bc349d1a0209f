"""Many names in little memory."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

_CHUNK = 4096


class Names(Sequence[str]):
    """A list of names that stays as it is, such as the relative paths of a million files.

    They lie one after another in one piece of memory, each followed by a zero byte, so that a name takes its bytes and
    eight more, and processes that are forked share them: there is no count of references beside each name that reading
    it would change. It equals a tuple of the same names. Bytes of a name that are no UTF-8 are kept, as `os.fsdecode`
    shows them.
    """

    __slots__ = ("_ends", "_text")

    def __init__(self, text: bytes, ends: NDArray[np.int64]) -> None:
        """Take what `text` and `ends` of another one were.

        Args:
            text: the names in UTF-8, a zero byte behind each.
            ends: (M,) where in it each name ends; its zero byte stands there.

        Raises:
            ValueError: they do not belong together.
        """
        size = len(text)
        if ends.ndim != 1 or size != (int(ends[-1]) + 1 if len(ends) else 0):
            raise ValueError(f"{size} bytes do not end where the last of {ends.size} names does")
        if len(ends) and (ends[0] < 0 or (np.diff(ends) < 1).any()):
            raise ValueError("the ends of names do not ascend")
        if np.frombuffer(text, np.uint8)[ends].any():
            raise ValueError("names are not followed by zero bytes")
        self._text, self._ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Pack names."""
        found, pieces, lengths = iter(names), list[bytes](), list[NDArray[np.int64]]()
        while chunk := list(islice(found, _CHUNK)):
            encoded = [_encoded(name) for name in chunk]
            pieces.append(b"\0".join([*encoded, b""]))
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        if not lengths:
            return cls(b"", np.empty(0, np.int64))
        return cls(b"".join(pieces), np.cumsum(np.concatenate(lengths) + 1) - 1)

    @property
    def text(self) -> bytes:
        """All names in UTF-8, a zero byte behind each."""
        return self._text

    @property
    def ends(self) -> NDArray[np.int64]:
        """(M,) where in the text each name ends."""
        return self._ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Names": ...

    def __getitem__(self, index: SupportsIndex | slice) -> "str | Names":
        if isinstance(index, slice):
            return self._slice(index)
        place = range(len(self))[index]
        return _decoded(self._text[self._start(place) : self._ends[place]])

    def __iter__(self) -> Iterator[str]:
        start = 0
        for first in range(0, len(self), _CHUNK):
            # As Python's numbers, which are quicker to cut with.
            for end in self._ends[first : first + _CHUNK].tolist():
                yield _decoded(self._text[start:end])
                start = end + 1

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self._text == other._text and np.array_equal(self._ends, other._ends)
        if isinstance(other, tuple):
            return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        shown = [repr(name) for name in self[:3]] + (["..."] if len(self) > 3 else [])
        return f"<{len(self)} names: {', '.join(shown)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Names, (self._text, self._ends)

    def _start(self, place: int) -> int:
        """Where the name of a place begins; that of the place behind the last one where all end."""
        return int(self._ends[place - 1]) + 1 if place else 0

    def _slice(self, index: slice) -> "Names":
        places = range(len(self))[index]
        if places.step != 1 or not places:
            return Names.of(self[place] for place in places)
        start, end = self._start(places.start), self._start(places.stop)
        return Names(self._text[start:end], self._ends[places.start : places.stop] - start)


def names_sha256(names: Sequence[str]) -> str:
    """A hash of names in their order, whatever system they lie on.

    Args:
        names: relative paths, or other names.
    """
    packed = names if isinstance(names, Names) else Names.of(names)
    text: bytes | memoryview = packed.text
    if os.sep != "/":
        text = packed.text.replace(os.sep.encode(), b"/")
    return hashlib.sha256(memoryview(text)[:-1]).hexdigest()  # joined by zero bytes, none behind the last


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _decoded(name: bytes) -> str:
    return name.decode(errors="surrogateescape")
