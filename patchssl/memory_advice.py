"""What to change in a training that is too large for its memory, cheapest first, each with what it would take then."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from patchssl.config import Config, TrainConfig
from patchssl.memory import Estimate, Setting, Tracer, estimate
from patchssl.memory_trace import Trace, trace

_LEAST_SAVED = 0.02
# What makes up no more of a training is not worth trying to change.
_SMALL_SHARE = 0.05
_LEAST_CHUNK_MIB = 32
_LEAST_PROTOTYPES = 1024


@dataclass(frozen=True, slots=True)
class Advice:
    """A change and what comes of it.

    Attributes:
        change: as on the command line.
        cost: what it costs, in words.
        estimate: of the changed training.
        fits: whether that is no more than there is.
    """

    change: str
    cost: str
    estimate: Estimate
    fits: bool


def remembering() -> Tracer:
    """A `trace` that goes each way once."""

    @functools.cache
    def traced(config: Config, num_images: int, device: str, precision: str) -> Trace:
        return trace(config, num_images, device=device, precision=precision)

    def of(config: Config, num_images: int, *, device: str, precision: str) -> Trace:
        train = config.train
        # All of the section that a part depends on.
        alike = TrainConfig(
            accumulate=min(2, train.accumulate), checkpoint_activations=train.checkpoint_activations, seed=train.seed
        )
        return traced(config.model_copy(update={"train": alike}), num_images, device, precision)

    return of


class Advisor:
    """Tries changes of a training on the estimate."""

    def __init__(self, config: Config, setting: Setting, most_bytes: int, *, tracer: Tracer | None = None) -> None:
        """Keep what is to be changed.

        Args:
            config: of the run.
            setting: where it runs.
            most_bytes: where networks are computed.
            tracer: as `trace`; one that remembers saves time.
        """
        self.config, self.setting, self.most_bytes = config, setting, most_bytes
        self._tracer = tracer or remembering()
        self._estimate = estimate(config, setting, tracer=self._tracer)
        self._now = self._estimate.on_device

    def advice(self) -> Iterator[Advice]:
        """All that saves something: what changes rounding or time only, then what changes more."""
        found = chain(self._same_training(), self._more_processes(), self._other_training())
        for name, cost, config, setting in found:
            result = estimate(config, setting, tracer=self._tracer)
            if result.on_device <= (1 - _LEAST_SAVED) * self._now:
                yield Advice(name, cost, result, result.on_device <= self.most_bytes)

    def _same_training(self) -> Iterator[tuple[str, str, Config, Setting]]:
        config, setting, train = self.config, self.setting, self.config.train
        if setting.precision == "fp32":
            yield "--precision bf16", "rounding", config, replace(setting, precision="bf16")
        num = self._least_accumulate(config)
        if num > train.accumulate:
            yield f"train.accumulate={num}", "rounding", _with(config, accumulate=num), setting
        if config.loss.chunk_mib > _LEAST_CHUNK_MIB and self._estimate.loss > _SMALL_SHARE * self._now:
            smaller = config.model_copy(update={"loss": config.loss.model_copy(update={"chunk_mib": _LEAST_CHUNK_MIB})})
            yield f"loss.chunk_mib={_LEAST_CHUNK_MIB}", "some time, rounding", smaller, setting
        if not train.checkpoint_activations:
            again = _with(config, checkpoint_activations=True)
            yield "train.checkpoint_activations=true", "up to a third more time", again, setting
            num = self._least_accumulate(again)
            if num > train.accumulate:
                both = f"train.checkpoint_activations=true train.accumulate={num}"
                yield both, "up to a third more time, rounding", _with(again, accumulate=num), setting

    def _more_processes(self) -> Iterator[tuple[str, str, Config, Setting]]:
        """On further GPUs; on CPUs, which share memory, they would take more."""
        if self.setting.device != "cuda":
            return
        num = 2 * self.setting.num_processes
        more = replace(self.setting, num_processes=num)
        yield f"{num} processes", "so many GPUs", self.config, more
        if self.config.train.strategy != "fsdp":
            shared = _with(self.config, strategy="fsdp")
            yield f"{num} processes, train.strategy=fsdp", "so many GPUs, some time", shared, more

    def _other_training(self) -> Iterator[tuple[str, str, Config, Setting]]:
        config, setting = self.config, self.setting
        size = self._largest_batch()
        if size < config.train.batch_size:
            yield f"--batch-size {size}", "another training: noisier steps", _with(config, batch_size=size), setting
        model = config.model
        # Student, teacher, gradients, two moments and, with the loss, about one more of each.
        weights = 24 * model.cls_prototypes * model.head_bottleneck
        if model.cls_prototypes > _LEAST_PROTOTYPES and not model.shared_head and weights > _SMALL_SHARE * self._now:
            num = max(_LEAST_PROTOTYPES, model.cls_prototypes // 4)
            fewer = config.model_copy(update={"model": model.model_copy(update={"cls_prototypes": num})})
            yield f"model.cls_prototypes={num}", "another training: coarser targets", fewer, setting

    def _least_accumulate(self, config: Config) -> int:
        """The fewest parts with which it fits, or as many as there are images; parts are of equal size."""
        num_images = config.train.batch_size // self.setting.num_processes
        parts = [num for num in range(config.train.accumulate, num_images + 1) if num_images % num == 0]
        if not parts:
            return config.train.accumulate
        low, high = 0, len(parts) - 1
        while low < high:
            middle = (low + high) // 2
            if self._bytes(_with(config, accumulate=parts[middle]), self.setting) <= self.most_bytes:
                high = middle
            else:
                low = middle + 1
        return parts[low]

    def _largest_batch(self) -> int:
        """The largest batch that is sure to fit, or the smallest that there is.

        Most parts grow along straight lines, so the line through two points is a good guess; what is on the heap of the
        C library goes its own way.
        """
        train, num_processes = self.config.train, self.setting.num_processes
        unit = train.accumulate * num_processes
        least = self._bytes(_with(self.config, batch_size=unit), self.setting)
        most = train.batch_size // unit
        if least >= self.most_bytes or most <= 1:
            return min(unit, train.batch_size)
        slope = (self._now - least) / (most - 1)
        guess = max(1, min(most, 1 + int((self.most_bytes - least) / slope)))
        while guess > 1 and self._bytes(_with(self.config, batch_size=unit * guess), self.setting) > self.most_bytes:
            guess = int(0.9 * guess)
        return unit * guess

    def _bytes(self, config: Config, setting: Setting) -> int:
        return estimate(config, setting, tracer=self._tracer).on_device


def _with(config: Config, **values: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=values)})
