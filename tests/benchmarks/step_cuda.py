"""The step on a GPU: against the plain form, and against what its matrix products alone would take."""

import statistics
import time
from collections.abc import Callable

import torch
from step_forms import SMALL, TINY, OurForm, ours, plain, shared_head
from step_stages import STEP, stages
from torch.utils.flop_counter import FlopCounterMode

_BATCH, _LARGE_BATCH = 4, 64
_MATRIX = 8192


def on_cuda(repeats: int) -> bool:
    """Print the tables; without a GPU, that there is none."""
    if not torch.cuda.is_available():
        print("no CUDA device")
        return True
    print(torch.cuda.get_device_name())
    for num in (8192, 65536):
        config = shared_head(TINY, num)
        theirs, our = plain(config, _BATCH, device="cuda"), ours(config, _BATCH, device="cuda")
        seconds: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(repeats + 3):
            seconds["plain"].append(_seconds(theirs.step))
            seconds["ours"].append(_seconds(our.step))
        found = {name: statistics.median(values[3:]) for name, values in seconds.items()}
        ratio = found["plain"] / found["ours"]
        told = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in found.items())
        print(f"ViT-Ti/16, batch {_BATCH}, K = {num:,}: {told}; {ratio:.2f} times as fast")
        del theirs, our
        torch.cuda.empty_cache()
    _large(ours(shared_head(SMALL, 65536), _LARGE_BATCH, device="cuda"), repeats)
    return True


def _large(form: OurForm, repeats: int) -> None:
    for _ in range(3):
        form.step()
    torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(_seconds(form.step) for _ in range(2 * repeats + 1))
    peak_gib = torch.cuda.max_memory_allocated() / 2**30
    with FlopCounterMode(display=False) as counter:
        form.step()
    rate = _flops_per_s()
    share = counter.get_total_flops() / rate / seconds
    print(
        f"ViT-S/16, batch {_LARGE_BATCH}, K = 65,536: {1 / seconds:.2f} steps/s, "
        f"{_LARGE_BATCH / seconds:.0f} images/s, peak {peak_gib:.1f} GiB; "
        f"{counter.get_total_flops() / 1e12:.1f} TFLOP in products, "
        f"{share:.0%} of the step at the measured {rate / 1e12:.0f} TFLOP/s"
    )
    found = stages(form, repeats)
    for name, value in found.items():
        print(f"{name:46}{value * 1e3:8.1f} ms{value / found[STEP]:8.1%}")


def _flops_per_s() -> float:
    """Of one large product in bf16."""
    one, other = (torch.randn(_MATRIX, _MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = [_seconds(lambda: one @ other) for _ in range(20)]
    return float(2 * _MATRIX**3 / statistics.median(seconds[5:]))


def _seconds(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start
