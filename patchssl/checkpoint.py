"""Checkpoints that are whole or not there."""

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from patchssl.atomic import replacing
from patchssl.checksums import HashedWriter, checksum_line, checksum_path
from patchssl.errors import CheckpointError, FormatError

FORMAT = 2
READABLE_FORMATS = (1, FORMAT)
KIND = "patchssl-pretrain"


@contextlib.contextmanager
def written_whole(path: Path, *, then: str = "go on with --resume") -> Iterator[BinaryIO]:
    """Write a file beside its place, flush it to the disk and move it there; on an error nothing is left of it.

    Args:
        path: where it belongs.
        then: what to do after an error, once there is space.

    Raises:
        CheckpointError: the disk is full or cannot be written; what stood at the path before stays.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            yield file
    # Torch wraps a failed write of the file underneath into a RuntimeError.
    except (OSError, RuntimeError) as error:
        reason = _write_error(error)
        raise CheckpointError(f"cannot save {path}: {reason}; free some space and {then}") from error


def write_checkpoint(path: Path, content: Mapping[str, Any], *, step: int) -> None:
    """Write a checkpoint and its checksum.

    The checksum takes its place first: whenever the process is killed, a checkpoint that stands there is whole and has
    its checksum beside it. One of the same step is removed before, since of two the checksum could be the other's.

    Args:
        path: `step-NNNNNNNN.pt`.
        content: tensors, numbers, strings and containers of them.
        step: how many steps have been done.

    Raises:
        CheckpointError: it cannot be written; nothing is left of it.
    """
    beside = checksum_path(path)
    try:
        with written_whole(path) as file:
            digest = _saved({**content, "format": FORMAT, "kind": KIND, "step": step}, file)
            path.unlink(missing_ok=True)
            with written_whole(beside) as told:
                told.write(checksum_line(path, digest))
    except BaseException:
        if not path.exists():
            beside.unlink(missing_ok=True)
        raise


def _saved(content: Mapping[str, Any], file: BinaryIO) -> str:
    """Write content to a file; returns its SHA-256."""
    writer = HashedWriter(file)
    try:
        torch.save(content, cast("BinaryIO", writer))
    except RuntimeError:
        # What torch says of a write that was cut short by Ctrl-C hides that it was.
        if isinstance(writer.error, KeyboardInterrupt):
            raise writer.error from None
        raise
    return writer.hexdigest()


def load_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint without running any code from it.

    Args:
        path: a `step-*.pt`, or `latest`.
        mapped: map the file into memory, so that only the tensors that are used are read.

    Raises:
        FormatError: it has a format that this version does not read.
        CheckpointError: missing, damaged, or not one of ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except (PermissionError, IsADirectoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    # Torch's reader of zip files answers a cut file with OSError, too.
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged, truncated or no checkpoint of patchssl: {reason}"
        ) from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        found = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path} is no checkpoint of patchssl; it holds: {found}")
    if content.get("format") not in READABLE_FORMATS:
        raise FormatError(
            f"{path} has format {content.get('format')!r}; this version reads formats "
            f"{' and '.join(map(str, READABLE_FORMATS))}: install the version of patchssl that wrote it"
        )
    missing = [key for key in ("config", "teacher", "student") if not isinstance(content.get(key), Mapping)]
    if missing:
        raise CheckpointError(f"{path} is incomplete: it lacks {', '.join(missing)}")
    return content


def _write_error(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]
