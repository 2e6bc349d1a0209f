"""What a run says about itself while it goes on."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

from patchssl.collapse import CollapseAdviser
from patchssl.metrics_line import line, measured
from patchssl.monitor import MetricsFile, StepClock, read_metrics
from patchssl.step_values import StepValues
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import Outcome

logger = logging.getLogger(__name__)

#: Given each line, says in words what is wrong and new.
Adviser = Callable[[Mapping[str, float]], Iterable[str]]


class Watch:
    """Measures a run at intervals, writes it down, and warns of what goes wrong."""

    def __init__(self, run: Path, networks: StudentTeacher, *, num_images: int, num_steps: int) -> None:
        """Go on with the files of a run folder."""
        self._networks, self._config = networks, networks.config
        self._num_images, self._num_steps = num_images, num_steps
        path = run / "metrics.jsonl"
        self._advisers: list[Adviser] = [CollapseAdviser(self._config, num_steps, read_metrics(path))]
        self._writers, self._clock = [MetricsFile(path)], StepClock()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers:
            writer.close()

    def waited(self) -> None:
        """The images of a step have come."""
        self._clock.waited()

    def stepped(
        self, step: int, values: StepValues, outcome: Outcome, num_images: int, *, skipped_steps: int = 0
    ) -> None:
        """A step, counted from 0, has been done on so many images; so many steps were skipped until now."""
        self._clock.stepped(num_images)
        if step % self._config.log.every_steps and step != self._num_steps - 1:
            return
        found = self._measure(step, values, outcome) | {"skipped_steps": skipped_steps} | self._clock.read()
        for writer in self._writers:
            writer.write(found)
        for adviser in self._advisers:
            for advice in adviser(found):
                logger.warning(advice)

    def _measure(self, step: int, values: StepValues, outcome: Outcome) -> dict[str, float]:
        terms = outcome.terms
        of_step = line(step, self._num_images, self._config, values, terms)
        losses = {kind: of_step[f"loss_{kind}"] for kind in ("cls", "patch")}
        sums = self._networks.target_sums(terms.answer, terms.shares, values.teacher_temperature)
        return of_step | {"gradient_norm": outcome.gradient_norm} | measured(losses, sums, terms.answer.whole)
