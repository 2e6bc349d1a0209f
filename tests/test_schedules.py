"""Schedules against DINO's values and by hand."""

import json
from pathlib import Path

import pytest

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
