"""Weight files → what they hold. No code of a file is ever run."""

import argparse
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from patchssl.errors import CheckpointError

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_KINDS = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "a PDF document",
}
_NEEDED = "needed: weights by name, as torch.save(model.state_dict(), FILE) or safetensors write them"
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
_SCALAR: Any = np.float64(0).__reduce__()[0]
# What training scripts store beside weights: their options, and numbers that come from NumPy.
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float16", "float32", "float64")),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]
_DAMAGED = (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError)


def read_file(path: Path) -> Mapping[str, Any]:
    """Read a `.pth`, `.pt`, `.bin` or `.safetensors` file; its first bytes tell which it is.

    Returns:
        Its content by name: tensors, or whatever a training script put around them.

    Raises:
        CheckpointError: missing, empty, cut, no weight file, or something that would have to run code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; give a weight file") from None
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes); copy or download it again")
    if path.suffix == ".safetensors" or _is_safetensors(head, size):
        return _read_safetensors(path, size)
    if not head.startswith((_ZIP, _PICKLE)):
        raise CheckpointError(f"{path} ({size:,} bytes) is {_kind(head)}, no weight file; {_NEEDED}")
    content = _read_torch(path, size, mapped=head.startswith(_ZIP))
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, no weights by name; {_NEEDED}")
    return {str(name): value for name, value in content.items()}


def _is_safetensors(head: bytes, size: int) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size


def _read_safetensors(path: Path, size: int) -> Mapping[str, Any]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} ({size:,} bytes) is cut, damaged or no safetensors file: {error}; copy or download it again"
        ) from None


def _read_torch(path: Path, size: int, *, mapped: bool) -> Any:
    try:
        # Torch warns of files by plain pickle before it refuses them.
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Mapped, so that an optimiser's state, which nobody asks for here, stays on disk.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        refused = _REFUSED.search(reason)
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise CheckpointError(
                f"{path} holds more than weights: reading it would call {refused[1]}, so it is refused and nothing of "
                "it was run; save the weights alone, torch.save(model.state_dict(), FILE)"
            ) from None
        raise CheckpointError(
            f"{path} ({size:,} bytes) is cut, damaged or no weight file: {reason[:200]}; copy or download it again; "
            f"{_NEEDED}"
        ) from None


def _kind(head: bytes) -> str:
    known = next((kind for mark, kind in _KINDS.items() if head.startswith(mark)), None)
    if known is not None:
        return known
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        # A character may be cut at the end.
        text = head[: error.start].decode() if error.start > len(head) - 4 else "\0"
    return "text" if all(letter.isprintable() or letter.isspace() for letter in text) else "of an unknown kind"
