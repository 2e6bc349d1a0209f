"""The values of a training step that follow a schedule."""

from dataclasses import dataclass

from patchssl.config import Config
from patchssl.schedules import cosine, linear


@dataclass(frozen=True)
class StepValues:
    """The scheduled values of one step."""

    learning_rate: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    patch_weight: float
    prototypes_frozen: bool


def scheduled(config: Config, step: int, num_steps: int) -> StepValues:
    """All scheduled values at a step, counted from 0, by a configuration in which `derive` has filled what was null."""
    train, loss = config.train, config.loss
    assert train.learning_rate is not None
    assert train.ema_momentum is not None
    assert train.warmup_fraction is not None
    warmup = round(train.warmup_fraction * num_steps)
    return StepValues(
        learning_rate=cosine(
            step,
            base=train.learning_rate,
            final=train.final_learning_rate,
            num_steps=num_steps,
            num_warmup_steps=warmup,
        ),
        weight_decay=cosine(step, base=train.weight_decay, final=train.final_weight_decay, num_steps=num_steps),
        momentum=cosine(step, base=train.ema_momentum, final=train.final_ema_momentum, num_steps=num_steps),
        teacher_temperature=linear(
            step,
            start=loss.teacher_temperature_start,
            final=loss.teacher_temperature,
            num_steps=round(loss.teacher_temperature_warmup_fraction * num_steps),
        ),
        patch_weight=linear(
            step,
            start=loss.patch_weight_start,
            final=loss.patch_weight,
            num_steps=round(loss.patch_weight_warmup_fraction * num_steps),
        ),
        prototypes_frozen=step < round(train.freeze_last_layer_fraction * num_steps),
    )
