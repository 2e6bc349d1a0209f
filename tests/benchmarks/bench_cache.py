"""How fast images come from a cache, beside decoding them: `python tests/benchmarks/bench_cache.py FOLDER [SIDE_PX]`.

One process, one thread, the images in an order drawn at random. Decoding is measured with files in the system's memory,
which is least favourable to the cache; each image is then touched from end to end, as cutting views does. `cold` reads
what the system has been asked to forget; what is below it, as on a virtual machine, may still know. Also the speed of
making the cache, and the bytes of an image.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchssl.data.cache import ShrunkImages, open_image_cache
from patchssl.data.decode import open_image
from patchssl.data.images import StoredSource
from patchssl.data.sources import open_unlabelled

SIDE_PX = 355  # of views of 224 px
NUM_IMAGES = 2000
NUM_ROUNDS = 3


def decoded(source: StoredSource, index: int) -> NDArray[np.uint8]:
    stored = source.fetch(index)
    if not isinstance(stored, bytes):
        return stored
    return open_image(stored, source.where(index), apply_exif=source.apply_exif).pixels()


def images_per_second(fetch: Callable[[int], NDArray[np.uint8]], order: Iterable[int]) -> float:
    start, total, num = time.perf_counter(), 0, 0
    for index in order:
        total += int(fetch(index).reshape(-1)[::64].sum())
        num += 1
    assert total > 0
    return num / (time.perf_counter() - start)


def forget(paths: Iterable[Path]) -> None:
    """Ask the system to drop files from its memory."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fdatasync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    side = int(sys.argv[2]) if len(sys.argv) > 2 else SIDE_PX
    source = open_unlabelled(sys.argv[1])
    order = np.random.default_rng(0).permutation(len(source))[:NUM_IMAGES].tolist()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        start = time.perf_counter()
        cached = open_image_cache(source, Path(folder), side, workers=1)
        print(f"making it, 1 process: {len(source) / (time.perf_counter() - start):8.0f} images/s")
        # Before anything of it is mapped, which the system would not forget.
        files = list(cached.shards.folder.glob("*.bin"))
        forget(files)
        speeds = {"from the cache, cold": images_per_second(cached.fetch, order)}
        ways: dict[str, Callable[[int], NDArray[np.uint8]]] = {
            "decoded": lambda index: decoded(source, index),
            "decoded and shrunk": ShrunkImages(source, side).fetch,
            "from the cache": cached.fetch,
        }
        for _ in range(NUM_ROUNDS):
            for name, fetch in ways.items():
                speeds[name] = max(speeds.get(name, 0.0), images_per_second(fetch, order))
        for name, speed in speeds.items():
            print(f"{name + ':':21} {speed:8.0f} images/s, {speed / speeds['decoded']:6.1f} x decoding")
        bytes_stored = np.mean([len(stored) for i in order if isinstance(stored := source.fetch(i), bytes)] or [0])
        bytes_kept = sum(file.stat().st_size for file in files) / len(source)
        print(f"bytes an image:       {bytes_stored:8,.0f} in files, {bytes_kept:,.0f} in the cache")


if __name__ == "__main__":
    main()
