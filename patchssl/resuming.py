"""Checkpoints of a run on the way: saving them, and going on from the newest."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from patchssl.checkpoint import load_checkpoint
from patchssl.checkpoint_folder import LATEST, save_checkpoint
from patchssl.data.images import ImageSource
from patchssl.errors import CheckpointError, LoaderError
from patchssl.ranks import failing_together, from_main, is_main, world_size
from patchssl.resumable import Hardware, check_resumable, check_same_data, identity
from patchssl.skipped_steps import SkippedSteps
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

    def begin(self, *, resume: bool) -> tuple[int, SkippedSteps]:
        """Go on from the newest checkpoint, or save the state before the first step.

        Args:
            resume: go on, if there is a checkpoint yet.

        Returns:
            The step to go on with, and how many have been skipped.

        Raises:
            CheckpointError: the checkpoint is of other networks, data or settings, or cannot be read or written.
        """
        latest = self._run / "checkpoints" / LATEST
        # As the main process sees it, which may write one before others have looked.
        if from_main(resume and latest.exists()):
            return self._restore(latest)
        self.save(0, SkippedSteps())
        return 0, SkippedSteps()

    def save(self, step: int, skipped: SkippedSteps) -> None:
        """Save the state after so many steps, unless it has just been saved or read; the main process writes.

        Args:
            step: how many have been done.
            skipped: how many of them were.

        Raises:
            CheckpointError: it cannot be written; the checkpoints of before stay.
        """
        if step == self._saved:
            return
        train = self._trainer.config.train
        content = {**self._identity, "skipped_steps": asdict(skipped), **self._trainer.state()}
        folder = self._run / "checkpoints"
        with failing_together():
            if is_main():
                path = save_checkpoint(
                    folder, content, step=step, keep_last=train.keep_last, keep_every=train.keep_every
                )
                logger.info("saved %s", path)
        self._saved = step

    @contextmanager
    def kept_where_loading_fails(
        self, step: int, skipped: SkippedSteps, may_save: Callable[[], bool]
    ) -> Iterator[None]:
        """A block in which the images of a step are waited for.

        Args:
            step: how many steps have been done.
            skipped: how many of them were.
            may_save: whether the state is worth keeping; asked where this process is alone. Several cannot save when
                one of them has failed.

        Raises:
            LoaderError: from inside the block, with what is kept of the run.
        """
        try:
            yield
        except LoaderError as error:
            failure = error
        else:
            return
        not_saved = ""
        if world_size() == 1 and may_save():
            try:
                self.save(step, skipped)
            except CheckpointError as error:
                not_saved = f"what was done since could not be saved ({error}); "
        latest = self._run / "checkpoints" / LATEST
        kept = f"{not_saved}the checkpoint {latest.resolve().name} is kept: go on with --resume"
        raise type(failure)(f"{failure}; {kept}") from failure.__cause__

    def _restore(self, path: Path) -> tuple[int, SkippedSteps]:
        with failing_together():
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
        self._saved = int(content["step"])
        return self._saved, SkippedSteps(**content["skipped_steps"])
