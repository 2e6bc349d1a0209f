"""What the checksum of a checkpoint costs: python tests/benchmarks/bench_checkpoints.py [GB].

Saving with it against saving without, both until the disk has it; and verifying against reading, from the disk's cache.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from patchssl.checkpoint_folder import damage, save_checkpoint

_VALUES = 5_000_000  # 20 MB a tensor


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of several times."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def save_plainly(content: object, path: Path) -> None:
    """As without a checksum."""
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> None:
    """All of a file."""
    block = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            continue


def main(size_gb: float) -> None:
    """Print a line for each."""
    tensors = {f"w{number}": torch.rand(_VALUES) for number in range(max(1, round(size_gb * 1e9 / 4 / _VALUES)))}
    content = {"config": {}, "student": tensors, "teacher": {}}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        plain = seconds(lambda: save_plainly(content, folder / "plain.pt"))
        hashed = seconds(lambda: save_checkpoint(folder, content, step=1, keep_last=1))
        path = folder / "step-00000001.pt"
        reading, verifying = seconds(lambda: read(path)), seconds(lambda: damage(path))
        loading = seconds(lambda: torch.load(path))
    print(f"{size_gb:g} GB: saved in {hashed:.2f} s, without checksum {plain:.2f} s ({hashed / plain:.2f} times)")
    print(f"verified in {verifying:.2f} s, read in {reading:.2f} s, loaded in {loading:.2f} s")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
