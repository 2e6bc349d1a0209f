"""What a run says about itself while it goes on."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor

from patchssl.collapse import CollapseAdviser
from patchssl.data_wait import DataWait, Loading, describe_wait
from patchssl.event_file import EventFile
from patchssl.launch import launched
from patchssl.metrics_line import line, measured
from patchssl.monitor import MetricsFile, read_metrics
from patchssl.ranks import is_main, world_size
from patchssl.stage_clock import StageClock
from patchssl.step_clock import Interval, StepClock
from patchssl.step_values import StepValues
from patchssl.student_teacher import StudentTeacher
from patchssl.time_report import describe_time, describe_whole
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
        clock: StageClock | None = None,
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
            clock: that is told of the stages of this process; None where nobody tells of any.
        """
        self._networks, self._config = networks, networks.config
        self._num_images, self._num_steps = num_images, num_steps
        path = run / "metrics.jsonl"
        self._advisers: list[Adviser] = [CollapseAdviser(self._config, num_steps, read_metrics(path))]
        self._writers: list[MetricsFile | EventFile] = [MetricsFile(path)]
        if self._config.log.tensorboard and is_main():
            self._writers.append(EventFile(run, first_step=first_step))
        self._data_wait, self._measure_teacher, self._first_step = DataWait(), measure, first_step
        device = networks.centers["cls"].device.type
        self._loading = Loading.of(self._config, num_workers=workers, device=device, launch=launched())
        self._has_told_time = False
        self._stages = clock or StageClock()
        self._clock = StepClock(self._stages)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers:
            writer.close()

    def stepped(
        self,
        step: int,
        values: StepValues,
        outcome: Outcome,
        num_images: int,
        *,
        loader_s: Mapping[str, float] | None = None,
        skipped_steps: int = 0,
    ) -> None:
        """Take note of a step.

        Args:
            step: counted from 0.
            values: that were scheduled for it.
            outcome: what became of it.
            num_images: of its batch.
            loader_s: what it took to make this process's share of that, by stage.
            skipped_steps: until now.
        """
        self._clock.stepped(num_images, loader_s or {})
        log, is_last = self._config.log, step == self._num_steps - 1
        is_measured = self._measure_teacher is not None and (is_last or (step + 1) % log.knn_every_steps == 0)
        if step % log.every_steps and not is_last and not is_measured:
            return
        with self._stages.stage("logging"):
            self._log(step, values, outcome, skipped_steps=skipped_steps, is_measured=is_measured)

    def _log(self, step: int, values: StepValues, outcome: Outcome, *, skipped_steps: int, is_measured: bool) -> None:
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
            logger.info(describe_whole(whole, first_step=self._first_step, **self._processes()))

    def _measured(self, step: int, values: StepValues, outcome: Outcome) -> dict[str, float]:
        terms = outcome.terms
        of_step = line(step, self._num_images, self._config, values, terms)
        losses = {kind: of_step[f"loss_{kind}"] for kind in ("cls", "patch")}
        sums = self._networks.target_sums(terms.answer, terms.shares, values.teacher_temperature)
        return of_step | {"gradient_norm": outcome.gradient_norm} | measured(losses, sums, terms.answer.whole)

    def _teacher_measured(self, num_done: int) -> dict[str, float]:
        assert self._measure_teacher is not None
        with self._stages.stage("measuring"):
            return dict(self._measure_teacher(self._networks.teacher.backbone.state_dict(), num_done))

    def _advice(self, found: Mapping[str, float], interval: Interval) -> Iterable[str]:
        for adviser in self._advisers:
            yield from adviser(found)
        window = self._data_wait.add(interval)
        if window is not None:
            yield describe_wait(window, self._loading)
            if not self._has_told_time:
                self._has_told_time = True
                logger.info("in these %.0f s: %s", window.length_s, describe_time(window, **self._processes()))

    def _processes(self) -> dict[str, int]:
        return {"num_workers": self._loading.num_workers, "num_processes": world_size()}
