"""What settings are made of: their kinds of numbers, and the section that refuses unknown keys."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _one_for_each(*what: str) -> BeforeValidator:
    """A number for each of these; a single one stands for equal ones."""
    wanted = f"give {len(what)} probabilities from 0 to 1, for {', '.join(what)} views, or one for all"

    def spread(value: object) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not 0 <= value <= 1:
                raise ValueError(f"is {value}; {wanted}")
            return [value] * len(what)
        if not isinstance(value, list | tuple):
            raise ValueError(f"is {value!r}; {wanted}")
        if len(value) != len(what):
            raise ValueError(f"holds {len(value)} values, {list(value)}; {wanted}")
        return value

    return BeforeValidator(spread)


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
PerKind = Annotated[tuple[Fraction, Fraction, Fraction], _one_for_each("first global", "other global", "local")]
PerGlobal = Annotated[tuple[Fraction, Fraction], _one_for_each("first global", "other global")]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
