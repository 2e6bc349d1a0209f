"""How much memory there is for this process."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_KIB = 1024
# A control group without a limit says so by a number near the largest one.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True)
class Available:
    """Memory that a process may have.

    Attributes:
        num_bytes: in all, with what it has already.
        limit: what sets it, in words.
    """

    num_bytes: int
    limit: str


def resident_bytes(root: Path = Path("/")) -> int:
    """What this process has of the machine's memory now; 0 where the system does not tell."""
    found = _table(root / "proc/self/status").get("VmRSS")
    return 0 if found is None else found


def host_memory(root: Path = Path("/")) -> Available | None:
    """Of the machine's memory: the least of what is free, what the control groups allow, and the process's own limit.

    Args:
        root: of the file system.

    Returns:
        None where the system tells nothing of the kind.
    """
    resident = resident_bytes(root)
    found = [Available(resident + free, limit) for free, limit in _free(root)]
    return min(found, key=lambda available: available.num_bytes, default=None)


def device_memory(device: str) -> Available | None:
    """Of the memory in which networks are held on a device: cpu, cuda or mps."""
    if device != "cuda":
        return host_memory()
    import torch

    free, _ = torch.cuda.mem_get_info()
    return Available(free + torch.cuda.memory_reserved(), "free memory of the GPU")


def _free(root: Path) -> Iterator[tuple[int, str]]:
    """What may be taken besides, by each of the limits that there are."""
    if (free := _table(root / "proc/meminfo").get("MemAvailable")) is not None:
        yield free, "free memory of the machine"
    elif root == Path("/") and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "memory of the machine"
    for folder, limit, used, cache in _groups(root):
        most, now = _number(folder / limit), _number(folder / used)
        if most is not None and now is not None and most < _NO_LIMIT:
            # Pages of files that nobody uses at the moment make room when they have to.
            yield most - now + _table(folder / "memory.stat", unit=1).get(cache, 0), "the control group's limit"
    if sys.platform == "linux" and root == Path("/"):
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            taken = _table(root / "proc/self/status").get("VmSize", 0)
            yield most - taken, "the process's limit of address space"


def _groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """The control groups of this process, of version 2 and 1, up to the root: folder and names of files."""
    text = _text(root / "proc/self/cgroup") or ""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            tops = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            tops = [root / "sys/fs/cgroup/memory"]
        else:
            continue
        for top in tops:
            # In a container the path may be that of the machine, of which only the top is there.
            folder = top / path.lstrip("/")
            for part in [folder, *folder.parents]:
                yield part, *names
                if part == top:
                    break


def _table(path: Path, unit: int = _KIB) -> dict[str, int]:
    """Names and numbers of a file of such lines."""
    found = {}
    for line in (_text(path) or "").splitlines():
        name, *numbers = line.replace(":", " ").split() or [""]
        if numbers and numbers[0].isdigit():
            found[name] = int(numbers[0]) * unit
    return found


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
