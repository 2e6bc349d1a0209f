"""Which file systems do not tell by a folder's times that something was put into it."""

import os
import re
from pathlib import Path

# Where objects of a store look like files: a folder's time is that of mounting, or any other.
_UNTOLD = re.compile(r"fuse(\..*)?")
_MOUNTS = Path("/proc/self/mountinfo")


def untold_devices(mounts: Path = _MOUNTS) -> frozenset[int]:
    """Numbers of the devices, as `os.stat` gives them, whose folders may change without any trace.

    Args:
        mounts: what is mounted, as Linux lists it; on other systems, which have no such file, there are none.
    """
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return frozenset()
    found = set[int]()
    for line in lines:
        # Number, parent, major:minor, ..., a dash, the kind of file system, ...
        before, _, after = line.partition(" - ")
        if _UNTOLD.fullmatch(after.partition(" ")[0]):
            major, minor = before.split(" ")[2].split(":")
            found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)
