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


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
