"""How near extraction, with decoding, comes to the forward pass alone; run by hand.

    python tests/benchmarks/bench_extraction.py [FOLDER] [--model SPEC] [--precision fp32]

Both are measured in turns in one run, on the same images and in the same precision; medians count. Without a folder of
photographs, textured pictures of their size are drawn. Of the two ways of sharing the cores the first hides decoding
as far as a worker process keeps up with one computing thread; the second has no core to spare, so that decoding takes
its time from the forward pass. The limit that the measured core-seconds set is printed beside each ratio. On a machine
that others use, too, compare the times of computing alone: the clock then counts them as waiting.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from patchssl.backbones import Backbone, load_backbone
from patchssl.data.images import ImageSource
from patchssl.data.sources import open_unlabelled
from patchssl.evaluate.extraction import extract, resolve_precision

NUM_DRAWN = 128


def draw_photographs(folder: Path) -> None:
    """Write JPEGs of 500 x 375 px and about 100 kB: noise of many scales, as natural images have."""
    rng = np.random.default_rng(0)
    for index in range(NUM_DRAWN):
        pixels = np.zeros((375, 500, 3))
        for scale in (2, 4, 16, 64):
            grid = rng.normal(0, 10 * scale**0.5, (375 // scale + 1, 500 // scale + 1, 3))
            pixels += np.repeat(np.repeat(grid, scale, 0), scale, 1)[:375, :500]
        Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8)).save(folder / f"{index:04d}.jpg", quality=85)


def run_forward(backbone: Backbone, ready: list[torch.Tensor], precision: str) -> None:
    """The network alone, on tensors that are cropped and normalised."""
    dtype = {"fp32": None, "bf16": torch.bfloat16}[precision]
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        for pixels in ready:
            backbone.forward(pixels)


def run_extraction(backbone: Backbone, source: ImageSource, precision: str, batch_size: int, num_workers: int) -> None:
    """Files to features, from the start of the workers to the last image."""
    extract(backbone, source, batch_size=batch_size, num_workers=num_workers, precision=precision)


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Time on the clock, and of all threads of this process, without its workers'."""
    clock, cores = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - cores


def measure(
    backbone: Backbone, source: ImageSource, ready: list[torch.Tensor], precision: str, batch_size: int, rounds: int
) -> None:
    """Print both ways of sharing the cores."""
    cores, num = len(os.sched_getaffinity(0)), len(source)
    torch.set_num_threads(1)
    _, decode_s = seconds(lambda: [backbone.preprocess.crop(source.read(index)) for index in range(num)])
    for told, threads, workers in (("decoding hidden", max(1, cores - 1), 1), ("all cores", cores, cores)):
        torch.set_num_threads(threads)
        run_forward(backbone, ready[:1], precision)
        turns = [
            (
                seconds(lambda: run_forward(backbone, ready, precision)),
                seconds(lambda n=workers: run_extraction(backbone, source, precision, batch_size, n)),  # type: ignore[misc]
            )
            for _ in range(rounds)
        ]
        bare, whole = (np.median([turn[kind] for turn in turns], axis=0) for kind in (0, 1))
        ratios = np.median([np.divide(*turn) for turn in turns], axis=0)
        limit = min(1.0, bare[1] / threads / decode_s) if threads < cores else bare[1] / (bare[1] + decode_s)
        print(
            f"{told:16}{threads} threads, {workers} workers: forward {num / bare[0]:6.1f}, extraction "
            f"{num / whole[0]:6.1f} images/s, ratio {ratios[0]:.3f} (limit {limit:.3f}); computing alone, without "
            f"waiting: {ratios[1]:.3f}; core-ms per image: decoding {1e3 * decode_s / num:.1f}, forward "
            f"{1e3 * bare[1] / num:.1f}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--model", default="timm:vit_small_patch16_224@random")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    backbone = load_backbone(options.model)
    precision = resolve_precision(options.precision, backbone.device)
    with tempfile.TemporaryDirectory() as drawn:
        if options.folder is None:
            draw_photographs(Path(drawn))
        source = first_of(open_unlabelled(options.folder or drawn, apply_exif=False), options.num_images)
        crops = torch.stack([backbone.preprocess.crop(source.read(index)) for index in range(len(source))])
        ready = [backbone.preprocess.normalise(part) for part in crops.split(options.batch_size)]
        print(f"{backbone.arch}, {backbone.preprocess.image_px} px, {precision}, {len(source)} images, batches of "
              f"{options.batch_size}")  # fmt: skip
        measure(backbone, source, ready, precision, options.batch_size, options.rounds)
    own, workers = (
        resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"peak memory: {own:.2f} GiB in this process, {workers:.2f} GiB in the largest worker")


def first_of(source: ImageSource, num: int) -> ImageSource:
    """At most num images."""
    return replace(source, ids=source.ids[:num])  # type: ignore[type-var]


if __name__ == "__main__":
    main()
