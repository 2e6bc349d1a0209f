"""What the time of a training goes into."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from patchssl.stage_clock import Stage, StageClock

#: Of the training device, in a step.
COMPUTING: tuple[Stage, ...] = ("moving", "augmenting", "forward", "loss", "backward", "update")
#: Of the process that trains.
TRAINING: tuple[Stage, ...] = ("waiting", *COMPUTING, "logging", "measuring", "saving", "other")
#: Of making batches.
LOADING: tuple[Stage, ...] = ("reading", "decoding", "augmenting", "other")


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of training.

    Attributes:
        num_images: how many were trained on.
        stages: seconds of this process, by stage; together they are its length.
        loader: seconds that it took to make the batches that were trained on, by stage: in loader processes, of all of
            them together and beside training; without any, a part of `stages["waiting"]`.
    """

    num_images: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    loader: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: "Interval") -> "Interval":
        """Both together."""
        return Interval(
            self.num_images + other.num_images, _added(self.stages, other.stages), _added(self.loader, other.loader)
        )

    @property
    def length_s(self) -> float:
        """All of it."""
        return sum(self.stages.values())

    @property
    def seconds(self) -> float:
        """Without measuring the teacher, which says nothing of the pace of training."""
        return self.length_s - self.stages.get("measuring", 0.0)

    @property
    def waited_s(self) -> float:
        """Until the loader had a batch ready."""
        return self.stages.get("waiting", 0.0)

    @property
    def computed_s(self) -> float:
        """In steps; what is neither this nor waiting went into saving and the like."""
        return sum(self.stages.get(name, 0.0) for name in COMPUTING)

    @property
    def wait_fraction(self) -> float:
        """The share of the time spent waiting; 0 of no time at all."""
        return self.waited_s / self.seconds if self.seconds else 0.0

    @property
    def images_per_s(self) -> float:
        """0 of no time at all."""
        return self.num_images / self.seconds if self.seconds else 0.0

    @property
    def images_per_computed_s(self) -> float:
        """What the computation alone would reach; 0 where nothing was computed."""
        return self.num_images / self.computed_s if self.computed_s else 0.0

    def line(self) -> dict[str, float]:
        """As `metrics.jsonl` has it: `seconds_forward` and so on, of making batches `seconds_loader_reading`."""
        return {
            "images_per_s": self.images_per_s,
            "data_wait_fraction": self.wait_fraction,
            **{f"seconds_{name}": self.stages.get(name, 0.0) for name in TRAINING},
            **{f"seconds_loader_{name}": self.loader.get(name, 0.0) for name in LOADING},
        }


class StepClock:
    """Cuts a training into intervals."""

    def __init__(self, stages: StageClock) -> None:
        """Begin now; what the clock has counted before is not of the training."""
        self._stages = stages
        self._current, self._read = Interval(), Interval()
        stages.read()

    def stepped(self, num_images: int, loader: Mapping[str, float]) -> None:
        """A step has ended, on so many images that took so many seconds to make, by stage."""
        self._current += Interval(num_images, loader=loader)

    def read(self) -> Interval:
        """What has passed since the last reading."""
        self._advance()
        interval, self._current = self._current, Interval()
        self._read += interval
        return interval

    def whole(self) -> Interval:
        """All since the beginning."""
        self._advance()
        return self._read + self._current

    def _advance(self) -> None:
        self._current += Interval(stages=self._stages.read())


def _added(some: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    return {name: some.get(name, 0.0) + others.get(name, 0.0) for name in [*some, *(others.keys() - some.keys())]}
