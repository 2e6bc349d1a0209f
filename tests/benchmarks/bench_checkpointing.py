"""What train.checkpoint_activations saves and costs: ViT-S/16, views 2 x 224 + 8 x 96 px, one thread.

    python tests/benchmarks/bench_checkpointing.py [--precision fp32] [--repeats 5]

Prints for both forms what the student keeps of an image for the backward pass, besides its weights; how much the peak
of a process grows with each image of a batch; and median seconds of a batch of 4. Steps are taken in turn, in processor
time, which other work on the machine changes little with one thread, as it waits for no other.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from bench_step import peak_gib
from step_forms import SMALL, OurForm, configuration, ours
from torch import Tensor

from patchssl.planning import plan

SMALL_BATCH, LARGE_BATCH, NUM_STEPS_TO_PEAK = 4, 8, 2
FORMS = {"kept": False, "again": True}


def form_of(name: str, batch: int, precision: str) -> OurForm:
    """Our step, with or without what is computed again; no branch is dropped."""
    model = {"arch": SMALL, "cls_prototypes": 8192, "patch_prototypes": 8192, "drop_path": 0.0}
    config = configuration({"model": model, "train": {"checkpoint_activations": FORMS[name]}})
    return ours(config, batch, precision=precision)


def kept_mib(form: OurForm) -> float:
    """What the student keeps of an image for the backward pass."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    groups, trainer = form.views.student, form.trainer
    with trainer.fabric.autocast(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        form.networks.student([group.pixels.flatten(0, 1) for group in groups], plan(groups, trainer.config).kept)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    weights = {parameter.untyped_storage().data_ptr() for parameter in form.networks.student.parameters()}
    return sum(num for pointer, num in storages.items() if pointer not in weights) / len(groups[0].pixels) / 2**20


def seconds_of(forms: dict[str, OurForm], repeats: int) -> dict[str, float]:
    """Median processor time of a step of each, after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats + 1):
        for name, form in forms.items():
            start = time.process_time()
            form.step()
            found[name].append(time.process_time() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def growth_mib(name: str, precision: str) -> float:
    """How much the peak of a process grows with each image."""
    command = [sys.executable, __file__, "--precision", precision, "--peak", name, "--batch"]
    peaks = [
        float(subprocess.run([*command, str(batch)], check=True, stdout=subprocess.PIPE, text=True).stdout)
        for batch in (SMALL_BATCH, LARGE_BATCH)
    ]
    return (peaks[1] - peaks[0]) / (LARGE_BATCH - SMALL_BATCH) * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare both forms, or print the peak of one of them in GiB."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", choices=FORMS, help="print that of this form alone, GiB")
    parser.add_argument("--batch", type=int, default=SMALL_BATCH)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.peak is not None:
        form = form_of(chosen.peak, chosen.batch, chosen.precision)
        for _ in range(NUM_STEPS_TO_PEAK):
            form.step()
        print(peak_gib())
        return
    growth = {name: growth_mib(name, chosen.precision) for name in FORMS}
    forms = {name: form_of(name, SMALL_BATCH, chosen.precision) for name in FORMS}
    kept, seconds = {name: kept_mib(form) for name, form in forms.items()}, seconds_of(forms, chosen.repeats)
    for name in FORMS:
        told = f"{kept[name]:.0f} MiB kept and {growth[name]:.0f} MiB more at the peak for each image"
        print(f"{name:6} {told}, {seconds[name]:.2f} s", flush=True)
    ratios = [values["again"] / values["kept"] for values in (kept, growth, seconds)]
    print("again / kept: " + ", ".join(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
