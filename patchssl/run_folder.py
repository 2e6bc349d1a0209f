"""A run folder: what may be written where, and what is written besides metrics and checkpoints."""

import csv
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from patchssl.checkpoint import written_whole
from patchssl.config import Config
from patchssl.environment import environment
from patchssl.errors import CheckpointError
from patchssl.event_file import EVENT_FILES
from patchssl.recipes import dump_config

logger = logging.getLogger(__name__)


def prepare_run(run: Path, config: Config, *, device: str, resume: bool, overwrite: bool) -> None:
    """Make a run folder, or check that an existing one may be written to; write `config.yaml` and `environment.json`.

    Raises:
        CheckpointError: the folder holds a run and neither resume nor overwrite is asked for, holds none to resume, or
            is no folder of ours to overwrite.
    """
    parts = [run / "checkpoints" / "latest", *(run / "checkpoints").glob("step-*.pt"), run / "metrics.jsonl"]
    parts += run.glob(EVENT_FILES)
    holds_run = any(part.exists() for part in parts)
    if resume and not (run / "checkpoints" / "latest").exists():
        raise CheckpointError(f"{run} holds no checkpoint to resume from; leave --resume out to start there")
    if holds_run and not resume and not overwrite:
        raise CheckpointError(
            f"{run} already holds a run; go on with it by --resume, replace it by --overwrite, or take another --output"
        )
    ours = holds_run or (run / "config.yaml").exists()
    if not ours and run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise CheckpointError(f"{run} exists and is not a run folder; take another --output")
    if overwrite:
        for part in parts:
            part.unlink(missing_ok=True)
    made_with = {**environment(device), "command": sys.argv}
    run.mkdir(parents=True, exist_ok=True)
    for name, text in (("config.yaml", dump_config(config)), ("environment.json", json.dumps(made_with, indent=2))):
        with written_whole(run / name) as file:
            file.write(text.rstrip().encode() + b"\n")


def list_unreadable(run: Path, reasons: Mapping[str, str]) -> None:
    """Write `unreadable.tsv`, path and reason of each image that was left out; nothing if there is none."""
    if reasons:
        with (run / "unreadable.tsv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows(sorted(reasons.items()))
        logger.warning("%d unreadable images, listed in %s", len(reasons), run / "unreadable.tsv")
