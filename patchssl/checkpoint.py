"""Checkpoints that are whole or not there."""

import contextlib
import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from patchssl.atomic import replacing
from patchssl.errors import CheckpointError

FORMAT = 1
KIND = "patchssl-pretrain"

logger = logging.getLogger(__name__)


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


def save_checkpoint(folder: Path, content: Mapping[str, Any], *, step: int, keep_last: int) -> Path:
    """Write `step-NNNNNNNN.pt`, move `latest` to it, and only then remove what is older than the newest keep_last.

    Args:
        folder: `checkpoints` of a run.
        content: tensors, numbers, strings and containers of them.
        step: how many steps have been done.
        keep_last: at least 1.

    Raises:
        CheckpointError: it cannot be written; the checkpoints of before stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    with written_whole(path) as file:
        torch.save({"format": FORMAT, "kind": KIND, "step": step, **content}, file)
    link = folder / ".latest.part"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.replace(folder / "latest")
    for old in checkpoints(folder)[:-keep_last]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """All whole checkpoints of a folder, oldest first."""
    return sorted(file for file in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", file.name))


def load_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint without running any code from it.

    Args:
        path: a `step-*.pt`, or `latest`.
        mapped: map the file into memory, so that only the tensors that are used are read.

    Raises:
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
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {content.get('format')!r}; this version reads format {FORMAT}: install the version of "
            "patchssl that wrote it"
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
