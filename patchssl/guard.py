"""Stands by a run whose numbers explode: counts the steps that are skipped, and ends it with words."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from patchssl.data.images import ImageSource
from patchssl.derived import learning_rate
from patchssl.errors import TrainingError
from patchssl.explosions import Circumstances, cause, changes, circumstances_told, examine, way_on, weights_are_finite
from patchssl.ranks import gather
from patchssl.skipped_steps import SkippedSteps, what_is_not_finite
from patchssl.structs import SampleKeys, ViewGroup
from patchssl.trainer import Outcome, Trainer

logger = logging.getLogger(__name__)


class Guard:
    """Watches over the numbers of a run.

    Attributes:
        skipped: how many steps were.
    """

    def __init__(
        self, trainer: Trainer, source: ImageSource, run: Path, *, precision: str, skipped: SkippedSteps
    ) -> None:
        """Begin with the steps that have been skipped so far."""
        self.skipped = skipped
        self._trainer, self._source, self._run, self._precision = trainer, source, run, precision
        self._train = trainer.config.train
        self._num_steps = self._train.num_steps(len(source))

    def count(self, step: int, outcome: Outcome) -> None:
        """Note what became of a step, counted from 0."""
        self.skipped = self.skipped.after(is_finite=outcome.is_finite)
        if not outcome.is_finite:
            logger.warning(
                "step %d is skipped: %s; %d in a row, %d in all",
                step,
                _told(outcome),
                self.skipped.in_a_row,
                self.skipped.total,
            )

    def check(self, step: int, outcome: Outcome, decoded: Sequence[ViewGroup], keys: SampleKeys) -> None:
        """End the run if it cannot go on, after a step that was counted.

        Args:
            step: counted from 0.
            outcome: of the step.
            decoded: its views.
            keys: its samples.

        Raises:
            TrainingError: too many steps in a row were skipped, or the run ends with weights that are not finite.
        """
        num = self.skipped.in_a_row
        if num >= self._train.max_skipped_steps:
            begun = (
                f"skipped {num} {'step' if num == 1 else 'steps'} in a row, with train.max_skipped_steps at "
                f"{self._train.max_skipped_steps}; in step {step} {_told(outcome)}"
            )
        elif step == self._num_steps - 1 and not self.has_finite_weights():
            begun = f"the run ends after step {step} with weights that are not finite"
        else:
            return
        raise TrainingError(f"{begun}: {self._explained(step + 1 - num, outcome, decoded, keys)}")

    def may_save(self) -> bool:
        """Whether a checkpoint is worth keeping: the newest one is to be from before an explosion."""
        if self.skipped.in_a_row:
            return False
        good = self.has_finite_weights()
        if not good:
            logger.warning("no checkpoint is saved: the last update left weights that are not finite")
        return good

    def has_finite_weights(self) -> bool:
        """Whether all weights are finite, in all processes."""
        return all(gather(weights_are_finite(self._trainer.networks)))

    def _explained(self, bad_step: int, outcome: Outcome, decoded: Sequence[ViewGroup], keys: SampleKeys) -> str:
        networks, train = self._trainer.networks, self._train
        derived = learning_rate(train.batch_size, networks.student.backbone.num_features).value
        around = Circumstances(train.learning_rate or derived, derived, train.clip_gradient, self._precision)
        views, is_finite = self._trainer.prepared(decoded, keys).student, math.isfinite(outcome.loss)
        findings = examine(networks, views, keys, self._source.ids, loss_is_finite=is_finite)
        on = way_on(self._run / "checkpoints", bad_step, changes(findings, around))
        return f"{cause(findings, self._precision)}; {circumstances_told(around)}; {on}"


def _told(outcome: Outcome) -> str:
    terms = outcome.terms
    parts = {"loss_cls": terms.cls.item(), "loss_patch": terms.patch.item(), "loss_koleo": terms.koleo.item()}
    return what_is_not_finite(parts, outcome.loss, outcome.gradient_norm)
