"""How near extraction, with decoding, comes to the forward pass alone; run by hand.

    python tests/benchmarks/bench_extraction.py [FOLDER] [--model SPEC] [--precision fp32]

Both are measured in turns in one run, on the same images and in the same precision; medians count. Without a folder of
photographs, textured pictures of their size are drawn. Of the two ways of sharing the cores the first hides decoding
as far as a worker process keeps up with one computing thread; the second has no core to spare, so that decoding takes
its time from the forward pass, and the limit that this sets is printed beside it.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from patchssl.backbones import Backbone, load_backbone
from patchssl.data.images import ImageSource
from patchssl.data.sources import open_unlabelled
from patchssl.evaluate.extraction import extract, resolve_precision
from patchssl.evaluate.forward import forward
from patchssl.pooling import parse_tokens

NUM_DRAWN = 256
PART = parse_tokens("cls")


def draw_photographs(folder: Path) -> None:
    """Write JPEGs of 500 x 375 px and about 100 kB: noise of many scales, as natural images have."""
    rng = np.random.default_rng(0)
    for index in range(NUM_DRAWN):
        pixels = np.zeros((375, 500, 3))
        for scale in (2, 4, 16, 64):
            grid = rng.normal(0, 10 * scale**0.5, (375 // scale + 1, 500 // scale + 1, 3))
            pixels += np.repeat(np.repeat(grid, scale, 0), scale, 1)[:375, :500]
        Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8)).save(folder / f"{index:04d}.jpg", quality=85)


def seconds_of_forward(backbone: Backbone, ready: list[torch.Tensor], precision: str) -> float:
    """The network alone, on tensors that are cropped and normalised."""
    dtype = {"fp32": None, "bf16": torch.bfloat16}[precision]
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        for pixels in ready:
            backbone.forward(pixels)
    return time.perf_counter() - start


def seconds_of_extraction(
    backbone: Backbone, source: ImageSource, precision: str, batch_size: int, num_workers: int
) -> float:
    """Files to features, from a cold loader to the last image."""
    start = time.perf_counter()
    extract(backbone, source, batch_size=batch_size, num_workers=num_workers, precision=precision)
    return time.perf_counter() - start


def core_seconds(run: Callable[[], object]) -> float:
    """The time of all threads of this process."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(
    backbone: Backbone, source: ImageSource, ready: list[torch.Tensor], precision: str, batch_size: int, rounds: int
) -> None:
    """Print both ways of sharing the cores."""
    cores = len(os.sched_getaffinity(0))
    num_images = len(source)
    decode_s = core_seconds(lambda: [backbone.preprocess.crop(source.read(index)) for index in range(num_images)])
    for told, threads, workers in (("decoding hidden", max(1, cores - 1), 1), ("all cores", cores, cores)):
        torch.set_num_threads(threads)
        seconds_of_forward(backbone, ready[:1], precision)
        forward_core_s = core_seconds(lambda: seconds_of_forward(backbone, ready, precision))
        bare, whole = [], []
        for _ in range(rounds):
            bare.append(seconds_of_forward(backbone, ready, precision))
            whole.append(seconds_of_extraction(backbone, source, precision, batch_size, workers))
        ratio = statistics.median(a / b for a, b in zip(bare, whole, strict=True))
        spare = cores - threads
        limit = forward_core_s / (forward_core_s + decode_s)
        if spare:
            limit = min(1.0, (forward_core_s / threads) / (decode_s / min(spare, workers)))
        print(
            f"{told:16} {threads} threads, {workers} workers: forward {num_images / statistics.median(bare):6.1f}, "
            f"extraction {num_images / statistics.median(whole):6.1f} images/s, ratio {ratio:.3f}; "
            f"core-ms per image: decoding {1e3 * decode_s / num_images:.1f}, forward "
            f"{1e3 * forward_core_s / num_images:.1f}; they allow {limit:.3f}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--model", default="timm:vit_small_patch16_224@random")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-images", type=int, default=256)
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
        agree = [forward(backbone, crops[:2], PART, precision)[PART[0]] for _ in range(2)]
        assert torch.equal(*agree)
        print(f"{backbone.arch}, {backbone.preprocess.image_px} px, {precision}, {len(source)} images, batches of "
              f"{options.batch_size}")  # fmt: skip
        measure(backbone, source, ready, precision, options.batch_size, options.rounds)
    own, workers = (
        resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"peak memory: {own:.2f} GiB in this process, {workers:.2f} GiB in the largest worker")


def first_of(source: ImageSource, num: int) -> ImageSource:
    """At most num images."""
    from dataclasses import replace

    return replace(source, ids=source.ids[:num])  # type: ignore[type-var]


if __name__ == "__main__":
    main()
