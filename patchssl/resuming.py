"""Checkpoints of a run on the way: saving them, and going on from the newest."""

import logging
from pathlib import Path

from patchssl.checkpoint import load_checkpoint
from patchssl.checkpoint_folder import LATEST, save_checkpoint
from patchssl.data.images import ImageSource
from patchssl.errors import CheckpointError
from patchssl.resumable import Hardware, check_resumable, check_same_data, identity
from patchssl.trainer import Trainer

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves a trainer into a run folder and restores it from there."""

    def __init__(self, run: Path, trainer: Trainer, source: ImageSource, hardware: Hardware) -> None:
        """Keep what is saved.

        Args:
            run: the run folder.
            trainer: whose state it is.
            source: the images that it is trained on.
            hardware: on which.
        """
        self._run, self._trainer, self._source, self._hardware = run, trainer, source, hardware
        self._identity = identity(source.ids, hardware)
        self._saved: int | None = None

    def begin(self, *, resume: bool) -> int:
        """Go on from the newest checkpoint, or save the state before the first step; returns the step to go on with.

        Args:
            resume: go on, if there is a checkpoint yet.

        Raises:
            CheckpointError: the checkpoint is of other networks, data or settings, or cannot be read or written.
        """
        latest = self._run / "checkpoints" / LATEST
        if resume and latest.exists():
            self._saved = self._restore(latest)
        else:
            self.save(0)
        assert self._saved is not None
        return self._saved

    def save(self, step: int) -> None:
        """Save the state after so many steps, unless it has just been saved or read.

        Raises:
            CheckpointError: it cannot be written; the checkpoints of before stay.
        """
        if step == self._saved:
            return
        train = self._trainer.config.train
        path = save_checkpoint(
            self._run / "checkpoints",
            {**self._identity, **self._trainer.state()},
            step=step,
            keep_last=train.keep_last,
            keep_every=train.keep_every,
        )
        self._saved = step
        logger.info("saved %s", path)

    def _restore(self, path: Path) -> int:
        content = load_checkpoint(path)
        check_resumable(content, self._trainer.config, path, self._hardware)
        check_same_data(content, self._source.ids, path)
        try:
            self._trainer.restore(content)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path} does not fit the configuration: {str(error).splitlines()[0]}; resume with that of the run"
            ) from None
        logger.info("resumed from %s at step %d", path.resolve(), content["step"])
        return int(content["step"])
