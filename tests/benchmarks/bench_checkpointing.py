"""What train.checkpoint_activations saves and costs: ViT-S/16, views 2 x 224 + 8 x 96 px, 2 threads.

    python tests/benchmarks/bench_checkpointing.py [--precision fp32] [--repeats 3]

Each form steps in a process of its own. Memory is how much the peak of a process grows with each image of a batch, so
that networks and optimizer, which both forms hold, are left out. Seconds are medians of a batch of 4, of processor
time, which other work on the machine changes little.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from bench_step import peak_gib
from step_forms import SMALL, configuration, ours

SMALL_BATCH, LARGE_BATCH, THREADS = 4, 8, 2
FORMS = "kept", "again"


def measure(form: str, batch: int, precision: str, repeats: int) -> None:
    """Print median seconds of processor time of a step and the peak of this process in GiB."""
    train = {"checkpoint_activations": form == "again"}
    heads = {"cls_prototypes": 8192, "patch_prototypes": 8192}
    stepping = ours(configuration({"model": {"arch": SMALL, **heads}, "train": train}), batch, precision=precision)
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        stepping.step()
        seconds.append(time.process_time() - start)
    print(statistics.median(seconds[1:]), peak_gib())


def measured(form: str, batch: int, precision: str, repeats: int) -> tuple[float, float]:
    """The same from a process of its own."""
    command = [sys.executable, __file__, "--form", form, "--batch", str(batch)]
    command += ["--precision", precision, "--repeats", str(repeats)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, gib = map(float, done.stdout.split()[-2:])
    return seconds, gib


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare both forms, or measure one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--form", choices=FORMS, help="measure this one alone")
    parser.add_argument("--batch", type=int, default=SMALL_BATCH)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    if chosen.form is not None:
        measure(chosen.form, chosen.batch, chosen.precision, chosen.repeats)
        return
    found = {}
    for form in FORMS:
        seconds, peak = measured(form, SMALL_BATCH, chosen.precision, chosen.repeats)
        _, larger = measured(form, LARGE_BATCH, chosen.precision, 1)
        growth = (larger - peak) / (LARGE_BATCH - SMALL_BATCH)
        found[form] = seconds, growth
        told = f"batch {SMALL_BATCH} {peak:.2f} GiB, batch {LARGE_BATCH} {larger:.2f} GiB, {growth:.3f} GiB an image"
        print(f"{form:6} {seconds:.2f} s a step; {told}", flush=True)
    (kept_s, kept), (again_s, again) = found["kept"], found["again"]
    print(f"computed again: {kept / again:.1f} times less memory an image, {again_s / kept_s:.2f} times the time")


if __name__ == "__main__":
    main()
