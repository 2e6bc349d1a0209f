"""What a run says about itself while it goes on."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from torch import Tensor

from patchssl import ranks
from patchssl.config import Config
from patchssl.data_wait import DataWait, Loading, describe_wait, describe_whole
from patchssl.environment import usable_cores
from patchssl.event_file import EventFile
from patchssl.monitor import MetricsFile
from patchssl.step_clock import StepClock
from patchssl.step_values import StepValues
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import LossTerms, Outcome

logger = logging.getLogger(__name__)

#: Given the state of the teacher's backbone and how many steps have been done, says what goes into a line.
MeasureTeacher = Callable[[Mapping[str, Tensor], int], Mapping[str, float]]


class Watch:
    """Measures a run at intervals, writes it down, and says when the loader holds it up."""

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
        self._writers: list[MetricsFile | EventFile] = [MetricsFile(run / "metrics.jsonl")]
        if self._config.log.tensorboard and ranks.is_main():
            self._writers.append(EventFile(run, first_step=first_step))
        self._clock, self._data_wait, self._measure_teacher = StepClock(), DataWait(), measure
        views = self._config.views
        self._loading = Loading(workers, usable_cores(), views.global_size, views.num_local)

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

    def stepped(self, step: int, values: StepValues, outcome: Outcome, num_images: int) -> None:
        """A step, counted from 0, has been done on so many images."""
        self._clock.stepped(num_images)
        log, is_last = self._config.log, step == self._num_steps - 1
        is_measured = self._measure_teacher is not None and (is_last or (step + 1) % log.knn_every_steps == 0)
        if step % log.every_steps and not is_last and not is_measured:
            return
        entropies = self._networks.teacher_entropy(outcome.terms.answer, values.teacher_temperature)
        interval = self._clock.read()
        found = (
            line(step, self._num_images, self._config, values, outcome.terms)
            | {"gradient_norm": outcome.gradient_norm}
            | {f"teacher_entropy_{kind}": value for kind, value in entropies.items()}
            | interval.line()
        )
        if is_measured:
            found |= self._measured(step + 1)
        for writer in self._writers:
            writer.write(found)
        window = self._data_wait.add(interval)
        if window is not None:
            logger.warning(describe_wait(window, self._loading))

    def ended(self) -> None:
        """No step follows: say what the time went into."""
        whole = self._clock.whole()
        if whole.num_images:
            logger.info(describe_whole(whole))

    def _measured(self, num_done: int) -> dict[str, float]:
        assert self._measure_teacher is not None
        found = dict(self._measure_teacher(self._networks.teacher.backbone.state_dict(), num_done))
        self._clock.leave_out()
        return found


def line(step: int, num_images: int, config: Config, values: StepValues, terms: LossTerms) -> dict[str, float]:
    """Losses and scheduled values of a step, as `metrics.jsonl` has them."""
    batch_size = config.train.batch_size
    return {
        "step": step,
        "epoch": step * batch_size / num_images,
        "images": (step + 1) * batch_size,
        "loss": terms.total.item(),
        "loss_cls": terms.cls.item(),
        "loss_patch": terms.patch.item(),
        "patch_pairs": terms.num_patch_pairs,
        "lr": values.learning_rate,
        "weight_decay": values.weight_decay,
        "momentum": values.momentum,
        "teacher_temperature": values.teacher_temperature,
        "patch_weight": values.patch_weight,
        **({"loss_koleo": terms.koleo.item()} if config.loss.koleo_weight else {}),
    }
