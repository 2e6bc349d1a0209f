"""Pickles of plain data, read without running anything that stands in them.

A pickle is a program: it may import any name and call it. This reader knows no name but those with which NumPy writes
arrays and numbers, and even these lead to the stand-ins below, never to NumPy: a forged state of a real array or type
could make NumPy take bytes of the file for addresses of objects. The arrays are made afterwards, from the bytes.
"""

import pickle
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import DataError

_PLAIN = (str, bytes, int, float, bool, type(None))
_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU]\d{1,6}|O[48]?)")


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle that holds dicts, lists, tuples, text, numbers, None and NumPy arrays or numbers.

    Text that Python 2 wrote as bytes is read as Latin-1, which keeps every byte and so every file name of ASCII.

    Args:
        path: of any protocol.

    Returns:
        The same data, arrays as real ones.

    Raises:
        DataError: it asks for a name that is not on the list, which is not imported then, or is damaged or unreadable.
    """
    try:
        with path.open("rb") as file:
            return _Plain().of(_Unpickler(file, encoding="latin1").load())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except _Refused as error:
        raise DataError(
            f"{path} is refused: it {error}. A pickle may run any program, so only plain data and NumPy arrays are "
            "read; write it as .json with the same keys"
        ) from None
    # What a damaged pickle raises is as varied as what it might hold.
    except Exception as error:
        raise DataError(f"{path} is no readable pickle, or damaged: {error or type(error).__name__}") from None


class _Refused(Exception):  # noqa: N818 - it is told as a sentence
    """What the pickle asks for."""


class _Type:
    """Stands for `numpy.dtype(name, align, copy)`."""

    def __init__(self, name: str, align: Any = False, copy: Any = False) -> None:
        if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
            raise _Refused(f"holds an array of the type {name!r}, and only numbers and text are read")
        self.name = name.lstrip("<>|=")
        self.order: Literal["<", ">", "="] = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # (version, byte order, …); the rest repeats the name, or describes records, which are refused.
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise _Refused("holds an array of records, and only numbers and text are read")
        self.order = "=" if state[1] == "|" else state[1]

    @property
    def is_object(self) -> bool:
        return self.name.startswith("O")

    def made(self) -> np.dtype[Any]:
        if self.is_object:
            raise _Refused("holds a number of the type object")
        return np.dtype(self.name).newbyteorder(self.order)


class _Array:
    """Stands for `numpy.ndarray`, and for the function that makes an empty one whose state comes afterwards."""

    def __init__(self, *arguments: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def made(self) -> Any:
        _, shape, kind, is_fortran, content = self.state
        if kind.is_object:
            if not isinstance(content, list) or len(shape) != 1:
                raise _Refused(f"holds an array of objects of the shape {shape}, and only lists of them are read")
            return content
        return _array(content, kind, shape, "F" if is_fortran else "C")


class _Buffer:
    """Stands for the function that makes an array of a buffer, from protocol 5 on."""

    def __init__(self, content: Any, kind: _Type, shape: tuple[int, ...], order: str) -> None:
        self.arguments = content, kind, shape, order

    def __setstate__(self, state: Any) -> None:
        raise _Refused("gives a state to a buffer")

    def made(self) -> Any:
        return _array(*self.arguments)


class _Number:
    """Stands for `numpy.core.multiarray.scalar(dtype, bytes)`."""

    def __init__(self, kind: _Type, content: Any) -> None:
        self.kind, self.content = kind, content

    def __setstate__(self, state: Any) -> None:
        raise _Refused("gives a state to a number")

    def made(self) -> Any:
        (value,) = np.frombuffer(_bytes(self.content), dtype=self.kind.made())
        return value


class _Encoded:
    """Stands for `codecs.encode(text, "latin1")` and `bytes()`, as which Python 3 writes bytes in old protocols."""

    def __init__(self, text: str = "", encoding: str = "latin1") -> None:
        if encoding != "latin1":
            raise _Refused(f"asks for the encoding {encoding!r}, and only latin1 is read")
        self.content = text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        raise _Refused("gives a state to bytes")

    def made(self) -> bytes:
        return self.content


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _Encoded,
    ("__builtin__", "bytes"): _Encoded,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Number for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise _Refused(f"asks for {module}.{name}")
        return _STAND_INS[module, name]


def _array(content: Any, kind: _Type, shape: tuple[int, ...], order: Any) -> NDArray[Any]:
    return np.frombuffer(_bytes(content), dtype=kind.made()).reshape(shape, order=order).copy()


def _bytes(content: Any) -> bytes:
    """Python 2 wrote bytes that are read as text."""
    content = content.made() if isinstance(content, _Encoded) else content
    return content.encode("latin1") if isinstance(content, str) else bytes(memoryview(content))


class _Plain:
    """Puts arrays in the place of their stand-ins.

    What is referred to twice is made once, or a few bytes could name more objects than there is memory for.
    """

    def __init__(self) -> None:
        # The originals are kept beside what was made of them, so that no number of an object is given out again.
        self.done: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if id(value) not in self.done:
            self.done[id(value)] = value, None
            self.done[id(value)] = value, self._made(value)
        made = self.done[id(value)][1]
        if made is None:
            raise _Refused("holds something that contains itself")
        return made

    def _made(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self.of(key): self.of(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.of(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self.of(item) for item in value)
        if isinstance(value, _Array | _Buffer | _Number | _Encoded):
            made = value.made()
            return self.of(made) if isinstance(made, list) else made
        raise _Refused(f"holds a {type(value).__name__}")
