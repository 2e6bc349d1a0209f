"""Steps that are left out because their loss or gradient is not finite: how many, and what was not finite."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

_ELSEWHERE = "what another process computed is not finite"


@dataclass(frozen=True)
class SkippedSteps:
    """How many steps of a run changed nothing.

    Attributes:
        total: so far.
        in_a_row: up to the newest step; 0 where that one counted.
    """

    total: int = 0
    in_a_row: int = 0

    def after(self, *, is_finite: bool) -> "SkippedSteps":
        """With one more step."""
        return SkippedSteps(self.total, 0) if is_finite else SkippedSteps(self.total + 1, self.in_a_row + 1)


def what_is_not_finite(terms: Mapping[str, float], loss: float, gradient_norm: float) -> str:
    """Name those terms of a loss that are not finite; if all are, the loss; if it is, the gradient.

    Args:
        terms: what the loss is made of, by name.
        loss: their weighted sum.
        gradient_norm: of its gradient.
    """
    for values in (terms, {"loss": loss}, {"the norm of the gradient": gradient_norm}):
        found = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if found:
            return ", ".join(found)
    return _ELSEWHERE
