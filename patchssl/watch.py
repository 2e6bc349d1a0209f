"""What a run says about itself while it goes on."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor

from patchssl.collapse import CollapseAdviser
from patchssl.data_wait import DataWait, Loading, describe_wait, describe_whole
from patchssl.event_file import EventFile
from patchssl.launch import launched
from patchssl.metrics_line import line, measured
from patchssl.monitor import MetricsFile, read_metrics
from patchssl.ranks import is_main
from patchssl.step_clock import Interval, StepClock
from patchssl.step_values import StepValues
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import Outcome

logger = logging.getLogger(__name__)

#: Given each line, says in words what is wrong and new.
Adviser = Callable[[Mapping[str, float]], Iterable[str]]
#: Given the state of the teacher's backbone and how many steps have been done, says what goes into a line.
MeasureTeacher = Callable[[Mapping[str, Tensor], int], Mapping[str, float]]


class Watch:
    """Measures a run at intervals, writes it down, and warns of what goes wrong."""

    def __init__(
        self,
        run: Path,
        networks: StudentTeacher,
        *,
        num_images: int,
        num_steps: int,
        first_step: int = 0,
        workers: int = 0,
        measure: MeasureTeacher | None = None,
    ) -> None:
        """Go on with the files of a run folder.

        Args:
            run: the folder.
            networks: that are trained.
            num_images: of the source.
            num_steps: of the whole training.
            first_step: to be done.
            workers: loader processes.
            measure: asked every `log.knn_every_steps` and after the last step.
        """
        self._networks, self._config = networks, networks.config
        self._num_images, self._num_steps = num_images, num_steps
        path = run / "metrics.jsonl"
        self._advisers: list[Adviser] = [CollapseAdviser(self._config, num_steps, read_metrics(path))]
        self._writers: list[MetricsFile | EventFile] = [MetricsFile(path)]
        if self._config.log.tensorboard and is_main():
            self._writers.append(EventFile(run, first_step=first_step))
        self._clock, self._data_wait, self._measure_teacher = StepClock(), DataWait(), measure
        self._loading = Loading.of(self._config.views, num_workers=workers, launch=launched())

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers:
            writer.close()

    def waits(self) -> None:
        """From here on the images of the next step are waited for."""
        self._clock.waits()

    def waited(self) -> None:
        """The images of a step have come."""
        self._clock.waited()

    def stepped(
        self, step: int, values: StepValues, outcome: Outcome, num_images: int, *, skipped_steps: int = 0
    ) -> None:
        """A step, counted from 0, has been done on so many images; so many steps were skipped until now."""
        self._clock.stepped(num_images)
        log, is_last = self._config.log, step == self._num_steps - 1
        is_measured = self._measure_teacher is not None and (is_last or (step + 1) % log.knn_every_steps == 0)
        if step % log.every_steps and not is_last and not is_measured:
            return
        interval = self._clock.read()
        found = self._measured(step, values, outcome) | {"skipped_steps": skipped_steps} | interval.line()
        if is_measured:
            found |= self._teacher_measured(step + 1)
        for writer in self._writers:
            writer.write(found)
        for advice in self._advice(found, interval):
            logger.warning(advice)

    def ended(self) -> None:
        """No step follows: say what the time went into."""
        whole = self._clock.whole()
        if whole.num_images:
            logger.info(describe_whole(whole))

    def _measured(self, step: int, values: StepValues, outcome: Outcome) -> dict[str, float]:
        terms = outcome.terms
        of_step = line(step, self._num_images, self._config, values, terms)
        losses = {kind: of_step[f"loss_{kind}"] for kind in ("cls", "patch")}
        sums = self._networks.target_sums(terms.answer, terms.shares, values.teacher_temperature)
        return of_step | {"gradient_norm": outcome.gradient_norm} | measured(losses, sums, terms.answer.whole)

    def _teacher_measured(self, num_done: int) -> dict[str, float]:
        assert self._measure_teacher is not None
        found = dict(self._measure_teacher(self._networks.teacher.backbone.state_dict(), num_done))
        self._clock.leave_out()
        return found

    def _advice(self, found: Mapping[str, float], interval: Interval) -> Iterable[str]:
        for adviser in self._advisers:
            yield from adviser(found)
        window = self._data_wait.add(interval)
        if window is not None:
            yield describe_wait(window, self._loading)
