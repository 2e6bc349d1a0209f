"""Schedules against DINO's values and by hand."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchssl.schedules import cosine, linear

GOLDEN = json.loads((Path(__file__).parent / "golden" / "cosine_schedule.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['epochs']}x{case['steps_per_epoch']}")
def test_equals_dino(case: dict[str, float]) -> None:
    steps = int(case["steps_per_epoch"])
    values = [
        cosine(
            step,
            base=case["base"],
            final=case["final"],
            num_steps=int(case["epochs"]) * steps,
            num_warmup_steps=int(case["warmup_epochs"]) * steps,
            start=case["start_warmup"],
        )
        for step in range(int(case["epochs"]) * steps)
    ]
    assert values == pytest.approx(case["values"], abs=1e-12, rel=1e-12)


def test_by_hand() -> None:
    assert [cosine(step, base=1.0, final=0.0, num_steps=4) for step in (0, 2, 4, 9)] == pytest.approx([1, 0.5, 0, 0])
    assert [linear(step, start=1.0, final=3.0, num_steps=3) for step in (0, 1, 2, 7)] == [1, 2, 3, 3]
    assert linear(0, start=1.0, final=3.0, num_steps=0) == 3


def test_a_warmup_of_everything_and_of_one_step() -> None:
    assert cosine(4, base=2.0, final=0.0, num_steps=5, num_warmup_steps=5) == 2
    assert cosine(0, base=2.0, final=0.0, num_steps=5, num_warmup_steps=1) == 2


def test_lines_of_one_and_two_steps() -> None:
    assert [linear(step, start=1.0, final=3.0, num_steps=1) for step in (0, 1)] == [3, 3]
    assert [linear(step, start=1.0, final=3.0, num_steps=2) for step in (0, 1, 2)] == [1, 3, 3]


@given(st.integers(1, 40), st.integers(0, 40), st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5))
def test_they_stay_between_their_ends_and_turn_at_the_end_of_the_warmup(
    num_steps: int, num_warmup_steps: int, start: float, base: float, final: float
) -> None:
    num_warmup_steps = min(num_steps, num_warmup_steps)
    options = {"base": base, "final": final, "start": start}
    values = [
        cosine(step, num_steps=num_steps, num_warmup_steps=num_warmup_steps, **options) for step in range(num_steps)
    ]
    rising, falling = values[:num_warmup_steps], values[num_warmup_steps:]
    assert rising == pytest.approx(sorted(rising, reverse=start > base))
    assert falling == pytest.approx(sorted(falling, reverse=base > final))
    assert values[max(0, num_warmup_steps - 1)] == pytest.approx(base)
    line = [linear(step, start=start, final=base, num_steps=num_warmup_steps) for step in range(num_steps)]
    assert line[num_warmup_steps:] == [base] * (num_steps - num_warmup_steps)
    assert num_warmup_steps < 2 or line[0] == start
