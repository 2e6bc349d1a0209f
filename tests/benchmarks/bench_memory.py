"""The estimate of memory beside the measured peak of processes that train with those configurations.

python tests/benchmarks/bench_memory.py [--steps N] [NAME ...]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

MOST_APART = 0.25
TINY, SMALL = "model.arch=vit_tiny_patch16_224", "model.arch=vit_small_patch16_224"
BF16, FP32 = "train.precision=bf16", "train.precision=fp32"

#: A recipe, or none, and what is changed in it.
CONFIGURATIONS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "tiny-bf16": (None, (TINY, "train.batch_size=8", BF16)),
    "small-fp32": (None, (SMALL, "views.num_local=0", "train.batch_size=4", FP32)),
    "cifar10-cpu": ("cifar10-cpu", (BF16,)),
    "tiny-accumulate": (None, (TINY, "train.batch_size=16", "train.accumulate=4", BF16)),
    "tiny-fp32-24": (None, (TINY, "train.batch_size=24", "views.num_local=2", FP32)),
    "small-checkpointed": (
        None,
        (SMALL, "train.batch_size=16", "views.num_local=2", "train.checkpoint_activations=true", BF16),
    ),
    "base-dino": (None, ("model.arch=vit_base_patch16_224", "loss.patch_weight=0", "train.batch_size=4", BF16)),
    "small-position": (
        None,
        (SMALL, "train.batch_size=4", "views.num_local=4", "loss.center=position", "model.patch_prototypes=4096", FP32),
    ),
}


def compare(name: str, num_steps: int, data: Path) -> float:
    """Print estimate and measured peak of a configuration; returns their ratio."""
    recipe, settings = CONFIGURATIONS[name]
    options = [] if recipe is None else ["--config", recipe]
    for setting in (f"train.steps={num_steps}", *settings):
        options += ["--set", setting]
    # Reading in the process itself leaves no others to be added up.
    command = [sys.executable, "-m", "patchssl", "pretrain", str(data), "--workers", "0", "--quiet", *options]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--output", f"{folder}/run"]
        planned = subprocess.run([*command, "--dry-run", "--format", "json"], stdout=subprocess.PIPE, check=True)
        measured = _peak_bytes(command) / 2**30
    memory = json.loads(planned.stdout)["memory"]
    parts: dict[str, float] = {part: num / 2**30 for part, num in memory["parts_bytes"].items()}
    estimated = sum(parts.values())
    apart = (estimated - parts["process"]) / (measured - parts["process"])
    print(
        f"{name:20}{estimated:9.2f}{measured:9.2f}{estimated / measured:8.2f}{apart:8.2f}   "
        + ", ".join(f"{part} {value:.2f}" for part, value in parts.items()),
        flush=True,
    )
    return estimated / measured


def _peak_bytes(command: Sequence[str]) -> int:
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_maxrss * 1024


def draw(folder: Path) -> None:
    """Write 64 images."""
    generator = np.random.default_rng(0)
    for number in range(64):
        Image.fromarray(generator.integers(256, size=(375, 500, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare what was chosen and tell whether all are near enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", default=list(CONFIGURATIONS), metavar="NAME", help=", ".join(CONFIGURATIONS)
    )
    parser.add_argument("--steps", type=int, default=4)
    chosen = parser.parse_args(arguments)
    print(f"{'GiB':20}{'estimate':>9}{'measured':>9}{'ratio':>8}{'without process':>8}")
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        ratios = {name: compare(name, chosen.steps, Path(folder)) for name in chosen.names}
    missed = [name for name, ratio in ratios.items() if abs(ratio - 1) > MOST_APART]
    if missed:
        print(f"missed: {', '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
