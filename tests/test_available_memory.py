"""How much memory there is, from files as Linux has them."""

from pathlib import Path

import pytest

from patchssl.available_memory import Available, host_memory, resident_bytes

KIB = 1024


def machine(root: Path, files: dict[str, str]) -> Path:
    """A file system with 100 KiB in this process and 1,000 KiB free, and what else is given."""
    base = {
        "proc/self/status": "Name:\tpython\nVmSize:\t  900 kB\nVmRSS:\t     100 kB\n",
        "proc/meminfo": "MemTotal:       4000 kB\nMemFree:         500 kB\nMemAvailable:   1000 kB\n",
    }
    for name, text in (base | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = {
    "proc/self/cgroup": "0::/jobs/one\n",
    "sys/fs/cgroup/jobs/one/memory.max": "max\n",
    "sys/fs/cgroup/jobs/one/memory.current": f"{200 * KIB}\n",
    "sys/fs/cgroup/jobs/memory.max": f"{600 * KIB}\n",
    "sys/fs/cgroup/jobs/memory.current": f"{400 * KIB}\n",
    "sys/fs/cgroup/jobs/memory.stat": f"anon 1\ninactive_file {50 * KIB}\n",
}
V1 = {
    "proc/self/cgroup": "5:cpu:/\n4:memory:/docker/abc\n0::/\n",
    # In a container only the top of the tree is there.
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{800 * KIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{300 * KIB}\n",
    "sys/fs/cgroup/memory/memory.stat": f"cache 7\ninactive_file 1\ntotal_inactive_file {20 * KIB}\n",
}
NO_LIMIT = V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}


@pytest.mark.parametrize(
    ("files", "free", "limit"),
    [
        ({}, 1000, "free memory of the machine"),
        (V2, 600 - 400 + 50, "the control group's limit"),
        (V1, 800 - 300 + 20, "the control group's limit"),
        (NO_LIMIT, 1000, "free memory of the machine"),
        (V2 | {"proc/meminfo": "MemAvailable: 30 kB\n"}, 30, "free memory of the machine"),
    ],
    ids=["machine", "version-2", "version-1", "without-limit", "little-left"],
)
def test_the_least_by_hand(tmp_path: Path, files: dict[str, str], free: int, limit: str) -> None:
    assert host_memory(machine(tmp_path, files)) == Available((100 + free) * KIB, limit)


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert host_memory(tmp_path) is None
    assert resident_bytes(tmp_path) == 0


def test_this_machine_has_more_than_this_process_takes() -> None:
    found = host_memory()
    assert found is not None
    assert found.num_bytes > resident_bytes() > 0
