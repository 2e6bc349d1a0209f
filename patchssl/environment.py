"""What a run or a result was made with: versions and hardware."""

import os
import platform
from pathlib import Path
from typing import Any


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware of this process.

    Args:
        device: where networks are computed, for instance `cpu` or `cuda:0`.
    """
    import faiss
    import torch

    from patchssl import __version__

    return {
        "patchssl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "faiss": faiss.__version__,
        "device": device,
        "host": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
            "system": platform.system(),
        },
        "threads": torch.get_num_threads(),
    }


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_computes_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices itself (AVX512-BF16, AMX) and torch makes use of it.

    Elsewhere bf16 is turned into float32 and back, which takes longer than float32 alone. Only what the processor
    says is asked and nothing is timed, so that the answer is always the same.
    """
    import torch

    if not torch.backends.mkldnn.is_available():
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8", errors="replace").split() if info.is_file() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
