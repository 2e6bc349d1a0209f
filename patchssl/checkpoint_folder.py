"""The checkpoints of a run: which there are, which is the newest whole one, which are kept."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchssl.checkpoint import load_checkpoint, write_checkpoint
from patchssl.checksums import checksum_path, file_sha256, read_checksum
from patchssl.errors import CheckpointError, FormatError

LATEST = "latest"

_STEP = re.compile(r"step-(\d+)\.pt")
_DAMAGED = ".damaged"

logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, content: Mapping[str, Any], *, step: int, keep_last: int, keep_every: int | None = None
) -> Path:
    """Write `step-NNNNNNNN.pt` and its checksum, move `latest` to it, and only then remove what is not to be kept.

    Args:
        folder: `checkpoints` of a run.
        content: tensors, numbers, strings and containers of them.
        step: how many steps have been done.
        keep_last: so many of the newest are kept, at least 1.
        keep_every: those of steps that this divides are kept as well.

    Raises:
        CheckpointError: it cannot be written; the checkpoints of before stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    write_checkpoint(path, content, step=step)
    point_latest(path)
    for old in checkpoints(folder)[:-keep_last]:
        if keep_every is None or step_of(old) % keep_every:
            old.unlink()
            checksum_path(old).unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a folder, oldest first; those that were found damaged are not among them."""
    return sorted((file for file in folder.glob("step-*.pt") if _STEP.fullmatch(file.name)), key=step_of)


def step_of(path: Path) -> int:
    """How many steps had been done, by the name of a checkpoint."""
    found = _STEP.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def damaged_checkpoints(folder: Path) -> list[Path]:
    """What was moved aside as damaged."""
    return sorted(folder.glob(f"step-*.pt{_DAMAGED}"))


def point_latest(path: Path) -> None:
    """Make `latest` stand for a checkpoint of the same folder, at once.

    Raises:
        CheckpointError: it cannot be written.
    """
    link = path.parent / f".{LATEST}.part"
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.replace(path.parent / LATEST)
    except OSError as error:
        raise CheckpointError(
            f"cannot move {path.parent / LATEST} to {path.name}: {error.strerror}; free some space and go on with "
            "--resume"
        ) from None


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written; `latest` stands for it then.

    Newer ones that are damaged are told, and moved aside as `step-N.pt.damaged` once a whole one is found.

    Args:
        folder: `checkpoints` of a run.

    Returns:
        The checkpoint, or None where there has been none.

    Raises:
        FormatError: one without checksum has a format of the future.
        CheckpointError: none is whole, or one may not be read.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints(folder)):
        reason = damage(path)
        if reason is None:
            for other, why in damaged.items():
                _move_aside(other, why, instead=path)
            if not _stands_for(folder / LATEST, path):
                logger.info("%s now stands for %s", folder / LATEST, path.name)
                point_latest(path)
            return path
        damaged[path] = reason
    told = [f"{path.name} {reason}" for path, reason in damaged.items()]
    told += [f"{path.name} was found damaged before" for path in damaged_checkpoints(folder)]
    if told:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {'; '.join(told)}; put one back from a copy with its .sha256, or "
            "start again with --overwrite"
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint as a file, in words; None where it is as it was written.

    Raises:
        FormatError: it has no checksum and a format of the future.
        CheckpointError: it may not be read.
    """
    try:
        expected = read_checksum(path)
    except FileNotFoundError:
        return _damage_without_checksum(path)
    except PermissionError as error:
        raise CheckpointError(f"{checksum_path(path)} cannot be read: {error.strerror}") from None
    except OSError as error:
        return f"cannot be checked: {checksum_path(path).name}: {error.strerror}"
    if expected is None:
        return f"cannot be checked: {checksum_path(path).name} holds no line of sha256sum for it"
    try:
        found = file_sha256(path)
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if found == expected:
        return None
    return f"({path.stat().st_size:,} bytes) has SHA-256 {found}, but {expected} was written"


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process left of files that it was writing, in a run folder and its checkpoints."""
    folder = run / "checkpoints"
    for part in (*run.glob(".*.part"), *folder.glob(".*.part")):
        part.unlink(missing_ok=True)
    for beside in folder.glob("step-*.pt.sha256"):
        if not beside.with_suffix("").exists():
            beside.unlink()


def _damage_without_checksum(path: Path) -> str | None:
    try:
        content = load_checkpoint(path, mapped=True)
    except FormatError:
        raise
    except CheckpointError as error:
        return f"has no checksum, and {error}"
    if content["format"] == 1:
        return None
    return (
        f"({path.stat().st_size:,} bytes) cannot be checked: {checksum_path(path).name} is missing, with the SHA-256 "
        "that was written"
    )


def _move_aside(path: Path, reason: str, *, instead: Path) -> None:
    aside = path.with_name(path.name + _DAMAGED)
    logger.warning(
        "checkpoint %s %s; going on from %s, the damaged one is now %s", path, reason, instead.name, aside.name
    )
    path.replace(aside)
    checksum_path(path).unlink(missing_ok=True)


def _stands_for(link: Path, path: Path) -> bool:
    return link.is_symlink() and link.resolve() == path.resolve()
