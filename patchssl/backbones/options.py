"""How a model is loaded, beside which."""

from dataclasses import dataclass

from patchssl.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """What a SPEC leaves open.

    Attributes:
        checkpoint_key: `teacher` or `student`; None for the teacher where there are two.
        seed: of fresh weights.
        arch: the architecture of a file that does not tell it.
        num_heads: the same for the number of heads.
        allow_partial: accept a file that does not fill the network; None where a command does not offer that.
        assumed_heads: the number of heads where nothing else tells it.
    """

    checkpoint_key: str | None = None
    seed: int = 0
    arch: str | None = None
    num_heads: int | None = None
    allow_partial: bool | None = False
    assumed_heads: int | None = None

    def refuse(self, *names: str, spec: str, reason: str) -> None:
        """Refuse options that would change nothing.

        Raises:
            ConfigError: one of them was given.
        """
        given = [name for name in names if getattr(self, name) not in (None, False)]
        if given:
            told = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigError(f"{told} changes nothing about {spec}: {reason}; leave it out")
