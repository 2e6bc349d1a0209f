"""What timing the stages of a step costs beside the step.

    python tests/benchmarks/bench_clock.py [--repeats 7] [--threads 2]

Blocks of ten steps with and without a clock, in turn and in one process; views are made beforehand. Two shares are
told: of the time within the clock, as many of its stages as there are in a step taken by themselves, beside that of the
step; and of what blocks with the clock take longer than those without, which varies far more. Medians. Where there is a
GPU, its clock as well: what it costs the processor.

Exits with 1 where the first is 0.1 % or more on the CPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from bench_watch import configurations
from step_forms import OurForm, ours

from patchssl.stage_clock import UNTIMED, StageClock, Stages, clock_of

MOST_SHARE = 0.001
_CALLS, _NUM_STEPS = 20_000, 10


class Counted:
    """Counts the stages that are entered."""

    def __init__(self) -> None:
        """None has been."""
        self.num_stages = 0

    def stage(self, name: object) -> "Counted":
        """One more."""
        self.num_stages += 1
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def seconds_of_a_stage(device: str) -> float:
    """To enter and leave one, within another; reading the clock now and then, as a run does."""
    clock = clock_of(device)
    start = time.perf_counter()
    with clock.stage("loss"):
        for number in range(_CALLS):
            with clock.stage("forward"):
                pass
            if number % 200 == 0:
                clock.read()
    return (time.perf_counter() - start) / _CALLS


def block(form: OurForm, num_steps: int, clock: Stages) -> float:
    """Seconds of so many steps."""
    form.trainer._clock = clock
    start = time.perf_counter()
    for _ in range(num_steps):
        with clock.stage("loss"):
            terms = form.losses()
        with clock.stage("update"):
            form.trainer.update(terms, form.values)
    if isinstance(clock, StageClock):
        clock.read()
    return time.perf_counter() - start


def shares(form: OurForm, repeats: int, device: str) -> tuple[float, int, float, float]:
    """Median seconds of a step, its stages, their share in it, share of what timed blocks take longer."""
    counted = Counted()
    block(form, 1, counted)
    clock = clock_of(device)
    timed, plain = [], []
    for _ in range(repeats):
        timed.append(block(form, _NUM_STEPS, clock))
        plain.append(block(form, _NUM_STEPS, UNTIMED))
    # What is not done here: waiting, and moving two groups of views.
    num_stages = counted.num_stages + 3
    step = statistics.median(plain) / _NUM_STEPS
    return (
        step,
        num_stages,
        num_stages * seconds_of_a_stage(device) / step,
        statistics.median(timed) / statistics.median(plain) - 1,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the shares and tell whether they are small enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    good = True
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for name, (config, batch_size) in configurations().items():
            step, num, within, longer = shares(ours(config, batch_size, device=device), chosen.repeats, device)
            print(
                f"{name}, {device}: step {step * 1e3:.0f} ms; {num} stages, {within:.4%} of it, blocks {longer:+.2%}",
                flush=True,
            )
            good &= device != "cpu" or within < MOST_SHARE
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
