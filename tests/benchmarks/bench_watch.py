"""What watching a run costs beside its steps.

    python tests/benchmarks/bench_watch.py [--repeats 7] [--threads 2]

Blocks of as many steps as there are between two lines of metrics.jsonl, with and without watching, in turn and in one
process; loading and augmentation are left out, so that shares are somewhat larger than in a run. Two shares
are told: of the time within the watch beside that of the steps of the same block, and of what blocks with watching take
longer than those without, which varies more. Medians.

Exits with 1 where the first is 3 % or more.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from step_forms import TINY, OurForm, configuration, ours, shared_head

from patchssl.config import Config
from patchssl.recipes import load_config
from patchssl.watch import Watch

MOST_SHARE = 0.03


def configurations() -> dict[str, tuple[Config, int]]:
    """What is measured: a configuration and the images of a batch, by name."""
    recipe = load_config("cifar10-cpu", [])
    sections = recipe.model_dump(exclude_unset=True, exclude={"train"})
    return {
        "ViT-Ti/16, 2 x 224 + 8 x 96 px, K = 8,192, batch 4": (shared_head(TINY, 8192), 4),
        "ViT-Ti/16, the same, batch 8": (shared_head(TINY, 8192), 8),
        f"cifar10-cpu, batch {recipe.train.batch_size}": (configuration(sections), recipe.train.batch_size),
    }


def block(form: OurForm, num_steps: int, watch: Watch | None) -> tuple[float, float]:
    """Seconds of so many steps, and of watching them, one line included."""
    in_steps = in_watch = 0.0
    for step in range(num_steps):
        start = time.perf_counter()
        outcome = form.trainer.update(form.losses(), form.values)
        middle = time.perf_counter()
        in_steps += middle - start
        if watch is not None:
            watch.stepped(step, form.values, outcome, form.views.teacher.pixels.shape[0])
            in_watch += time.perf_counter() - middle
    return in_steps, in_watch


def shares(form: OurForm, repeats: int) -> tuple[float, float, float]:
    """Median seconds of a step, share of the time within the watch, share of what watched blocks take longer."""
    config = form.networks.config
    num_steps = config.log.every_steps
    with_watch, without, within = [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        Watch(Path(folder), form.networks, num_images=50_000, num_steps=10**6) as watch,
    ):
        block(form, 2, watch)
        for _ in range(repeats):
            in_steps, in_watch = block(form, num_steps, watch)
            with_watch.append(in_steps + in_watch)
            within.append(in_watch / in_steps)
            without.append(block(form, num_steps, None)[0])
    plain = statistics.median(without)
    return plain / num_steps, statistics.median(within), statistics.median(with_watch) / plain - 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the shares and tell whether they are small enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    good = True
    for name, (config, batch_size) in configurations().items():
        step, within, longer = shares(ours(config, batch_size), chosen.repeats)
        print(f"{name}: step {step * 1e3:.0f} ms; watching {within:.2%} of it, blocks {longer:+.1%}", flush=True)
        good &= within < MOST_SHARE
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
