"""A run folder: what may be written where, and what is written besides metrics and checkpoints."""

import csv
import io
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from patchssl.appending import AppendedLines
from patchssl.checkpoint import FORMAT, load_checkpoint, written_whole
from patchssl.checkpoint_folder import (
    LATEST,
    checkpoints,
    damaged_checkpoints,
    newest_whole,
    remove_leftovers,
)
from patchssl.checksums import checksum_path
from patchssl.config import Config
from patchssl.environment import environment
from patchssl.errors import CheckpointError
from patchssl.event_file import EVENT_FILES
from patchssl.ranks import world_size
from patchssl.recipes import dump_config
from patchssl.resumable import Change, Hardware, check_resumable, check_same_data, stored_config, with_open_values

logger = logging.getLogger(__name__)

_CONFIG, _ENVIRONMENT, _HISTORY, _METRICS = "config.yaml", "environment.json", "history.jsonl", "metrics.jsonl"
# What a checkpoint holds besides tensors; those would keep the file mapped as long as the run lasts.
_DESCRIBING = ("config", "step", "num_images", "image_names_sha256", "hardware")


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: a whole one to go on from; None at the beginning.
        content: of it, without tensors; None at the beginning.
        overwrite: whether what the folder holds is to be removed.
    """

    checkpoint: Path | None = None
    content: Mapping[str, Any] | None = None
    overwrite: bool = False

    @property
    def step(self) -> int:
        """How many steps have been done."""
        return 0 if self.content is None else int(self.content["step"])

    def with_open_values(self, config: Config) -> Config:
        """A configuration whose open values are those of the run that is resumed, if one is."""
        if self.content is None or self.checkpoint is None:
            return config
        return with_open_values(config, stored_config(self.content, self.checkpoint))

    def check(self, config: Config, ids: Sequence[str], hardware: Hardware) -> list[Change]:
        """What is no longer as it was in the checkpoint.

        Args:
            config: complete.
            ids: the relative path or name of each image.
            hardware: on which the run goes on.

        Raises:
            CheckpointError: the run cannot go on with such settings or data.
        """
        if self.content is None or self.checkpoint is None:
            return []
        changes = check_resumable(self.content, config, self.checkpoint, hardware)
        check_same_data(self.content, ids, self.checkpoint)
        return changes


def holds_run(run: Path) -> bool:
    """Whether a folder holds a run, even one that has only been prepared."""
    return (run / _CONFIG).exists() or _has_begun(run)


def find_start(run: Path, *, resume: bool, overwrite: bool) -> Start:
    """Find out where a run begins, and whether it may; the newest checkpoint is verified by its checksum.

    Raises:
        CheckpointError: the folder holds a run and neither resume nor overwrite is asked for, holds none to resume, is
            no folder of ours to overwrite, or holds checkpoints of which none can be used.
    """
    if resume:
        if not holds_run(run):
            raise CheckpointError(f"{run} holds no checkpoint to resume from; leave --resume out to start there")
        path = newest_whole(run / "checkpoints")
        if path is None:
            logger.info("%s holds no checkpoint yet; beginning at step 0", run)
            return Start()
        content = load_checkpoint(path, mapped=True)
        if content["format"] != FORMAT:
            raise CheckpointError(_other_format(run, path, content["format"]))
        return Start(path, {name: content[name] for name in _DESCRIBING if name in content})
    if _has_begun(run) and not overwrite:
        raise CheckpointError(
            f"{run} already holds a run; go on with it by --resume, replace it by --overwrite, or take another --output"
        )
    if not holds_run(run) and run.exists() and (not run.is_dir() or any(map(_is_kept, run.iterdir()))):
        raise CheckpointError(f"{run} exists and is not a run folder; take another --output")
    return Start(overwrite=overwrite)


def begin_run(run: Path, config: Config, start: Start, *, device: str, changes: Sequence[Change] = ()) -> None:
    """Make a run folder, or clean the one that is there; write `config.yaml`, `environment.json`, `history.jsonl`.

    Args:
        run: the folder.
        config: complete.
        start: what find_start returned.
        device: where networks are computed.
        changes: what is no longer as it was when the run last went on.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        if start.overwrite:
            _remove_run(run)
        run.mkdir(parents=True, exist_ok=True)
        remove_leftovers(run)
    except OSError as error:
        raise CheckpointError(f"{run} cannot be written: {error.strerror}; take another --output") from None
    made_with = {**environment(device), "command": sys.argv}
    _write(run / _CONFIG, dump_config(config))
    if start.checkpoint is None or not (run / _ENVIRONMENT).exists():
        _write(run / _ENVIRONMENT, json.dumps(made_with, indent=2))
    _append_history(run / _HISTORY, made_with, start.step, changes)


def prepare_run(run: Path, config: Config, *, device: str, resume: bool, overwrite: bool) -> None:
    """Make a run folder, or check that the run in an existing one may go on under a configuration.

    Raises:
        CheckpointError: as of find_start, check_resumable and begin_run.
    """
    start = find_start(run, resume=resume, overwrite=overwrite)
    changes = []
    if start.checkpoint is not None and start.content is not None:
        changes = check_resumable(start.content, config, start.checkpoint)
    begin_run(run, config, start, device=device, changes=changes)


def list_unreadable(run: Path, reasons: Mapping[str, str]) -> None:
    """Write `unreadable.tsv`, path and reason of each image that was left out; nothing if there is none."""
    if not reasons:
        return
    path, text = run / "unreadable.tsv", io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(sorted(reasons.items()))
    try:
        with written_whole(path) as file:
            file.write(text.getvalue().encode(errors="backslashreplace"))
    except CheckpointError as error:
        logger.warning("%d unreadable images, which could not be listed: %s", len(reasons), error)
    else:
        logger.warning("%d unreadable images, listed in %s", len(reasons), path)


def _has_begun(run: Path) -> bool:
    folder = run / "checkpoints"
    any_checkpoint = checkpoints(folder) or damaged_checkpoints(folder) or (folder / LATEST).exists()
    return bool(any_checkpoint) or (run / _METRICS).exists()


def _is_kept(entry: Path) -> bool:
    """Whether something in a folder is more than what a process left that was killed while it made the folder."""
    return not (entry.name.startswith(".") and entry.name.endswith(".part"))


def _remove_run(run: Path) -> None:
    folder = run / "checkpoints"
    # From the oldest on, so that what is left when this is cut short is a run that can go on.
    for checkpoint in [*damaged_checkpoints(folder), *checkpoints(folder)]:
        checkpoint.unlink()
        checksum_path(checkpoint).unlink(missing_ok=True)
    for part in (folder / LATEST, run / _METRICS, run / _HISTORY, run / _ENVIRONMENT, *run.glob(EVENT_FILES)):
        part.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    with written_whole(path, then="start again") as file:
        file.write(text.rstrip().encode() + b"\n")


def _append_history(path: Path, made_with: Mapping[str, Any], step: int, changes: Sequence[Change]) -> None:
    entry = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        **made_with,
        "num_processes": world_size(),
        "changed": {change.name: {"before": change.before, "now": change.now} for change in changes},
    }
    try:
        lines = AppendedLines(path)
        try:
            lines.write(json.dumps(entry))
        finally:
            lines.close()
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}; free some space and start again") from None


def _other_format(run: Path, path: Path, number: int) -> str:
    try:
        version = json.loads((run / _ENVIRONMENT).read_text(encoding="utf-8"))["patchssl"]
    except (OSError, ValueError, KeyError, TypeError):
        version = "of unknown version"
    return (
        f"{path} has format {number}, made by patchssl {version}; this version resumes format {FORMAT} only, while "
        f"evaluation reads both: go on from its weights with --init {run} --init-heads in a new --output"
    )
