"""Values that change over training, each a pure function of the step."""

import math


def cosine(
    step: int, *, base: float, final: float, num_steps: int, num_warmup_steps: int = 0, start: float = 0.0
) -> float:
    """Linear warm-up from start to base, then half a cosine towards final.

    As in DINO (Caron et al., 2021): the last warm-up step has the full base value, and the cosine starts from base
    again and would reach final one step after the last.

    Args:
        step: from 0.
        base: the value after the warm-up.
        final: the value that the cosine ends at.
        num_steps: all steps, warm-up included.
        num_warmup_steps: length of the warm-up; at most num_steps.
        start: the value at step 0 of the warm-up.
    """
    if step < num_warmup_steps:
        return base if num_warmup_steps == 1 else linear(step, start=start, final=base, num_steps=num_warmup_steps)
    progress = min(1.0, (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * progress))


def linear(step: int, *, start: float, final: float, num_steps: int) -> float:
    """A straight line from start at step 0 to final at step num_steps - 1, and final from there on."""
    if step >= num_steps - 1:
        return final
    return start + (final - start) * step / (num_steps - 1)
