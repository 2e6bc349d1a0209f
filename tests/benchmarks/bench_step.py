"""How fast and lean a whole training step is, against the form that DINO and PW-Self's release are written in.

    python tests/benchmarks/bench_step.py check|speed|memory|price|updates|profile|cuda|all [--repeats 5]

Views 2 x 224 + 8 x 96 px, batch 4, 2 threads; loading and augmentation are left out. All ratios are of medians of
steps that are taken in turn, each form in a process of its own, so that none works in memory that another has cut up.

check    both forms, with equal weights and views in float32: loss, gradients, and the loss after the update
speed    ViT-Ti/16, one head of 8,192 or 65,536 prototypes: our step against the plain one
memory   the same: how much the peak of a process grows with each image of a batch
price    separate heads of 65,536 and 8,192 prototypes: a step with the patch term against one without
updates  optimizer and EMA together, as a share of a step
profile  the parts of a step
cuda     speed on a GPU; of ViT-S/16, batch 64: steps per second, memory, share of the time that its products need

Exits with 1 where the forms disagree, a step is less than 2.2 times as fast or grows less than 10 times as slowly (at
65,536) as the plain one, patches cost more than 1.3 (ViT-S) or 1.7 times (ViT-Ti), or updates take 5 % or more.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from plain_form import PlainForm
from step_cuda import on_cuda
from step_forms import SMALL, TINY, OurForm, configuration, ours, plain, shared_head
from step_stages import EMA, OPTIMIZER, STEP, stages

from patchssl.config import Config

BATCH, THREADS = 4, 2
PROTOTYPES = 8192, 65536
#: Both loss and gradients, relative.
MOST_APART = 1e-4
LEAST_SPEEDUP, LEAST_LEANER, MOST_UPDATES = 2.2, 10, 0.05
MOST_PRICE = {TINY: 1.7, SMALL: 1.3}
NUM_STEPS_TO_PEAK = 2
# Far enough apart that the growth of our forms stands out from what a peak varies by, about 0.05 GiB.
BATCHES = {"plain": (4, 8), "bf16": (4, 16), "fp32": (4, 16)}
_TOLD = {"plain": "plain", "bf16": "ours, bf16", "fp32": "ours, fp32"}


def check(repeats: int) -> bool:
    """Whether both forms compute the same: of one tiny network, float32."""
    model = {
        "arch": TINY,
        "patch_size": 8,
        "width": 48,
        "depth": 3,
        "num_heads": 3,
        "drop_path": 0.0,
        "head_hidden": 64,
        "head_bottleneck": 32,
        "shared_head": True,
        "cls_prototypes": 96,
        "patch_prototypes": 96,
    }
    views = {"global_size": 48, "local_size": 24}
    loss = {"patch_weight": 0.7, "teacher_temperature": 0.07}
    # Such steps that an update which differs shows in the loss.
    train = {"clip_mode": "tensor", "learning_rate": 3e-3, "ema_momentum": 0.5, "final_ema_momentum": 0.5}
    config = configuration({"model": model, "views": views, "loss": loss, "train": train})
    one, other = ours(config, 3, precision="fp32"), plain(config, 3)
    found = _apart(one, other)
    for name, value in found.items():
        print(f"{name:32}{value:10.1e} apart")
    return max(found.values()) <= MOST_APART


def _apart(one: OurForm, other: PlainForm) -> dict[str, float]:
    terms, (loss, teacher) = one.losses(), other.losses()
    found = {"loss": _relative(terms.total, loss)}
    ours = [p.grad for p in one.networks.student.parameters() if p.grad is not None]
    theirs = torch.autograd.grad(loss, [p for p in other.student.parameters() if p.requires_grad], retain_graph=True)
    found["gradients, largest of tensors"] = max(_relative(a, b) for a, b in zip(ours, theirs, strict=True))
    for _ in range(2):
        one.trainer.update(terms, one.values)
        other.update(loss, teacher)
        terms, (loss, teacher) = one.losses(), other.losses()
    found["loss after two updates"] = _relative(terms.total, loss)
    return found


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).detach().norm() / other.detach().norm().clamp(min=1e-12))


def speed(repeats: int) -> bool:
    """Whether our step is as many times as fast as the plain one as it should be, with both numbers of prototypes."""
    good = True
    for num in PROTOTYPES:
        with ExitStack() as stack:
            forms = {name: stack.enter_context(form_in_process(name, BATCH, num)) for name in BATCHES}
            seconds = alternate(forms, repeats)
        print(f"\nViT-Ti/16, batch {BATCH}, K = {num:,}")
        for name, value in seconds.items():
            ratio = seconds["plain"] / value
            print(f"{_TOLD[name]:12}{value:8.2f} s{ratio:8.2f} times as fast as plain", flush=True)
        good &= seconds["plain"] / seconds["bf16"] >= LEAST_SPEEDUP
    return good


@contextmanager
def form_in_process(form: str, batch: int, num_prototypes: int) -> Iterator[Callable[[], float]]:
    """A function that takes a step of a form in a process of its own and returns the seconds that it took."""
    with subprocess.Popen(
        _command("serve", form, batch, num_prototypes), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        write, read = process.stdin, process.stdout

        def step() -> float:
            write.write("step\n")
            write.flush()
            return float(read.readline())

        yield step
        write.close()


def serve(form: str, batch: int, num_prototypes: int) -> None:
    """Take a step for each line of the input and print the seconds that it took."""
    stepping = _form(form, batch, num_prototypes)
    for _ in sys.stdin:
        start = time.perf_counter()
        stepping.step()
        print(time.perf_counter() - start, flush=True)


def _form(form: str, batch: int, num_prototypes: int) -> PlainForm | OurForm:
    config = shared_head(TINY, num_prototypes)
    return plain(config, batch) if form == "plain" else ours(config, batch, precision=form)


def _command(part: str, form: str, batch: int, num_prototypes: int) -> list[str]:
    return [sys.executable, __file__, part, "--form", form, "--batch", str(batch), "--k", str(num_prototypes)]


def alternate(forms: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median seconds of each of several steps taken in turn, after two of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats + 2):
        for name, step in forms.items():
            seconds[name].append(step())
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def timed(step: Callable[[], object]) -> Callable[[], float]:
    """The step, returning the seconds that it took."""

    def run() -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return run


def memory(repeats: int) -> bool:
    """Whether the peak of a process grows as many times as slowly with the batch as it should."""
    good = True
    for num in PROTOTYPES:
        print(f"\nViT-Ti/16, K = {num:,}: peak of a process of {NUM_STEPS_TO_PEAK} steps")
        growth = {}
        for form, batches in BATCHES.items():
            peaks = [_peak_in_process(form, batch, num) for batch in batches]
            growth[form] = (peaks[-1] - peaks[0]) / (batches[-1] - batches[0])
            told = ", ".join(f"batch {batch} {peak:.2f} GiB" for batch, peak in zip(batches, peaks, strict=True))
            ratio = growth["plain"] / growth[form]
            print(f"{form:8}{told}; {growth[form]:.3f} GiB an image, plain {ratio:.1f} times that", flush=True)
        if num == max(PROTOTYPES):
            good = growth["plain"] / growth["bf16"] >= LEAST_LEANER
    return good


def _peak_in_process(form: str, batch: int, num_prototypes: int) -> float:
    command = _command("peak", form, batch, num_prototypes)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def peak(form: str, batch: int, num_prototypes: int) -> None:
    """Take some steps of a form and print the peak of this process in GiB."""
    stepping = _form(form, batch, num_prototypes)
    for _ in range(NUM_STEPS_TO_PEAK):
        stepping.step()
    print(peak_gib())


def peak_gib() -> float:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # What getrusage tells begins with the peak of the process that started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def price(repeats: int) -> bool:
    """Whether the patch term costs as little as it should beside CLS alone."""
    good = True
    for arch, most in MOST_PRICE.items():
        both = {name: _separate(arch, weight) for name, weight in (("CLS and patches", 1.0), ("CLS alone", 0.0))}
        seconds = alternate({name: timed(ours(config, BATCH).step) for name, config in both.items()}, repeats)
        ratio = seconds["CLS and patches"] / seconds["CLS alone"]
        told = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        print(f"{arch}: {told}; {ratio:.2f} times", flush=True)
        good &= ratio <= most
    return good


def _separate(arch: str, patch_weight: float) -> Config:
    heads = {"cls_prototypes": 65536, "patch_prototypes": 8192}
    return configuration({"model": {"arch": arch, **heads}, "loss": {"patch_weight": patch_weight}})


def updates(repeats: int) -> bool:
    """Whether optimizer and EMA take as little of a step as they should."""
    good = True
    for arch in (TINY, SMALL):
        for num in PROTOTYPES:
            found = stages(ours(shared_head(arch, num), BATCH), repeats)
            share = (found[OPTIMIZER] + found[EMA]) / found[STEP]
            told = f"optimizer {found[OPTIMIZER] * 1e3:.0f} ms, EMA {found[EMA] * 1e3:.0f} ms"
            print(f"{arch}, K = {num:,}: {told} of {found[STEP]:.2f} s; {share:.1%}", flush=True)
            good &= share < MOST_UPDATES
    return good


def profile(repeats: int) -> bool:
    """Print the parts of a step."""
    for num in PROTOTYPES:
        print(f"\nViT-Ti/16, batch {BATCH}, K = {num:,}, precision auto")
        found = stages(ours(shared_head(TINY, num), BATCH), repeats)
        for name, seconds in found.items():
            print(f"{name:46}{seconds * 1e3:8.0f} ms{seconds / found[STEP]:8.1%}", flush=True)
    return True


PARTS: dict[str, Callable[[int], bool]] = {
    "check": check,
    "speed": speed,
    "memory": memory,
    "price": price,
    "updates": updates,
    "profile": profile,
    "cuda": on_cuda,
}


#: What runs in a process of its own.
ALONE: dict[str, Callable[[str, int, int], None]] = {"peak": peak, "serve": serve}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was chosen and tell whether it is good."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "all", *ALONE])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--form", choices=list(BATCHES), default="plain", help="of peak and serve")
    parser.add_argument("--batch", type=int, default=BATCH, help="of peak and serve")
    parser.add_argument("--k", type=int, default=min(PROTOTYPES), help="prototypes, of peak and serve")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    if chosen.part in ALONE:
        ALONE[chosen.part](chosen.form, chosen.batch, chosen.k)
        return 0
    missed = []
    for name, part in PARTS.items():
        if chosen.part in (name, "all"):
            print(f"== {name}", flush=True)
            if not part(chosen.repeats):
                missed.append(name)
    if missed:
        print(f"missed: {', '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
