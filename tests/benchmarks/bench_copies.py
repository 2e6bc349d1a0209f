"""How fast benchmarks are made from photographs; run by hand: `python tests/benchmarks/bench_copies.py`.

The yardstick is the least that any such program does: decoding each photograph once and saving it as often as copies
are written of it, at quality 95, in one process.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from patchssl.data.copies import write_copies
from patchssl.data.images import ImageSource
from patchssl.data.sources import open_unlabelled
from patchssl.data.synth.copies import draw_original

NUM_PHOTOS = 40
SIDE_PX = 512
NUM_FILES = 21  # the original, 9 JPEG copies, 9 crops and 2 strong copies


def draw_photos(folder: Path) -> ImageSource:
    for number in range(NUM_PHOTOS):
        Image.fromarray(np.asarray(draw_original(number, SIDE_PX, 0))).save(folder / f"{number}.jpg", quality=95)
    return open_unlabelled(folder)


def seconds_for_encoding(source: ImageSource, folder: Path) -> float:
    start = time.perf_counter()
    for index in range(len(source)):
        image = source.read(index)
        for copy in range(NUM_FILES):
            image.save(folder / f"{index}-{copy}.jpg", quality=95)
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for part in ("photos", "encoded"):
            (root / part).mkdir()
        source = draw_photos(root / "photos")
        plain = seconds_for_encoding(source, root / "encoded")
        num_files = NUM_PHOTOS * NUM_FILES
        print(f"encoding alone:      {num_files / plain:6.0f} images/s")
        for workers in (0, 2, 4):
            seconds = write_copies(root / f"out{workers}", source, workers=workers).seconds
            speed, ratio = num_files / seconds, seconds / plain
            print(f"copies, {workers} processes: {speed:6.0f} images/s, {ratio:.2f} x the time of encoding alone")


if __name__ == "__main__":
    main()
