"""What a run says about itself while it goes on."""

from pathlib import Path
from types import TracebackType

from patchssl.config import Config
from patchssl.monitor import MetricsFile, StepClock
from patchssl.step_values import StepValues
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import LossTerms, Outcome


class Watch:
    """Measures a run at intervals and writes it down."""

    def __init__(self, run: Path, networks: StudentTeacher, *, num_images: int, num_steps: int) -> None:
        """Go on with the files of a run folder."""
        self._networks, self._config = networks, networks.config
        self._num_images, self._num_steps = num_images, num_steps
        self._metrics, self._clock = MetricsFile(run / "metrics.jsonl"), StepClock()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()

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
        entropies = self._networks.teacher_entropy(outcome.terms.answer, values.teacher_temperature)
        self._metrics.write(
            line(step, self._num_images, self._config, values, outcome.terms)
            | {"gradient_norm": outcome.gradient_norm, "skipped_steps": skipped_steps}
            | {f"teacher_entropy_{kind}": value for kind, value in entropies.items()}
            | self._clock.read()
        )


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
