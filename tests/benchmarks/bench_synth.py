"""How fast the built-in images are drawn and written; run by hand: `python tests/benchmarks/bench_synth.py`.

The yardstick is the least that any such program does: saving as many PNGs of random pixels of the same size.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from patchssl.data.synth import write_dataset
from patchssl.data.synth.classes import class_images, draw_class_image
from patchssl.data.synth.files import Drawing, save

NUM_IMAGES = 2000
SIZE_PX = 64


def seconds_for_noise(folder: Path) -> float:
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for index in range(NUM_IMAGES):
        pixels = rng.integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
        save(Drawing(f"{index:06d}.png", pixels), folder)
    return time.perf_counter() - start


def seconds_for_classes(folder: Path) -> float:
    start = time.perf_counter()
    for image in class_images(NUM_IMAGES):
        save(Drawing(image.relative_path, draw_class_image(image, SIZE_PX, 0)), folder)
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = seconds_for_noise(folder / "noise")
        classes = seconds_for_classes(folder / "classes")
        summary = write_dataset(folder / "all", num_images=NUM_IMAGES, image_size_px=SIZE_PX)
    num_files = NUM_IMAGES + summary.num_originals + summary.num_copies + summary.num_queries + summary.num_database
    print(f"random pixels: {NUM_IMAGES / noise:7.0f} images/s")
    print(f"class images:  {NUM_IMAGES / classes:7.0f} images/s, {classes / noise:.2f} x the time of random pixels")
    print(f"all parts:     {num_files / summary.seconds:7.0f} images/s, {num_files} images in {summary.seconds:.1f} s")


if __name__ == "__main__":
    main()
