"""What listing the images of a large folder takes: python tests/benchmarks/bench_listing.py [NUM] [--folder DIR].

Makes NUM files (hard links to a few) in folders of 1,000 in a folder of its own, which is removed afterwards, and lists
them in fresh processes: anew, from the listing that was kept, and by plain os.walk. Exit code 1 where listing from the
kept one takes more than 2 s or a process more than 500 MB, both for a million files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_PER_FOLDER, _PER_SOURCE = 1_000, 30_000
_MOST_S, _MOST_MB, _OF_FILES = 2.0, 500.0, 1_000_000

_WALK = """
import os
def listed(root):
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
"""
_OURS = """
from patchssl.data.sources import open_unlabelled
def listed(root):
    return open_unlabelled(root).ids
"""
_MEASURED = """
import json, resource, sys, time
begun = time.perf_counter()
ids = listed(sys.argv[1])
seconds = time.perf_counter() - begun
assert "torch" not in sys.modules
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
print(json.dumps({"num": len(ids), "seconds": seconds, "peak_mb": peak_mb}))
"""


def make_files(folder: Path, num: int) -> None:
    """Make so many small image files by name."""
    for first in range(0, num, _PER_FOLDER):
        if first % _PER_SOURCE == 0:
            source = folder.parent / f"source-{first}"
            source.write_bytes(b"\xff\xd8\xff")
        inside = folder / f"{first // _PER_FOLDER:05d}"
        inside.mkdir(parents=True)
        for number in range(first, min(first + _PER_FOLDER, num)):
            os.link(source, f"{inside}/{number:08d}.jpg")


def measure(code: str, folder: Path, cache: Path) -> dict[str, float]:
    """List in a fresh process: how many, seconds without imports, largest memory."""
    environment = {**os.environ, "PATCHSSL_CACHE": str(cache)}
    command = [sys.executable, "-c", code + _MEASURED, str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> int:
    """Print a line for each way of listing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("num", nargs="?", type=int, default=_OF_FILES)
    parser.add_argument("--folder", type=Path, default=None, help="where to make the files; the system's by default")
    given = parser.parse_args()
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        data, cache = Path(name) / "data", Path(name) / "cache"
        make_files(data, given.num)
        time.sleep(2.5)  # what was written a moment ago is listed again
        told = {"os.walk": measure(_WALK, data, cache)}
        for way in ("first listing", "from the kept one", "from the kept one, again"):
            told[way] = measure(_OURS, data, cache)
        (data / "00000" / "another.jpg").write_bytes(b"")
        told["after one change"] = measure(_OURS, data, cache)
    for way, found in told.items():
        ratio = found["seconds"] / told["os.walk"]["seconds"]
        print(
            f"{way:26s} {found['num']:9,.0f} files  {found['seconds']:6.2f} s  {ratio:5.2f} times os.walk  "
            f"{found['peak_mb']:5.0f} MB"
        )
    limit_s = _MOST_S * max(1.0, given.num / _OF_FILES)
    is_quick = told["from the kept one"]["seconds"] <= limit_s
    is_small = all(found["peak_mb"] <= _MOST_MB for way, found in told.items() if way != "os.walk")
    return 0 if is_quick and is_small else 1


if __name__ == "__main__":
    sys.exit(main())
