"""Learning rate, momentum of the teacher and warm-up where the configuration leaves them open."""

from dataclasses import dataclass

from patchssl.config import Config


@dataclass(frozen=True)
class Derived:
    """A configuration without open values.

    Attributes:
        config: all of train's values are given.
        told: a line for each value that was derived, with its derivation.
    """

    config: Config
    told: tuple[str, ...]


def derive(config: Config, num_images: int) -> Derived:
    """Fill what a configuration leaves open.

    Args:
        config: null values of `train` are open.
        num_images: of the source.
    """
    values = {"learning_rate": 5e-4, "warmup_fraction": 0.1, "ema_momentum": 0.996}
    train = config.train
    open_values = {name: value for name, value in values.items() if getattr(train, name) is None}
    told = tuple(f"train.{name} = {value}" for name, value in open_values.items())
    return Derived(config.model_copy(update={"train": train.model_copy(update=open_values)}), told)
