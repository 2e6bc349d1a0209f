"""How fast views are augmented: cell by cell against as images, and both against torchvision on Pillow images.

    python tests/benchmarks/bench_photometric.py [--threads N]

An image is its ten views, 2 of 224 px and 8 of 96 px, from bytes or Pillow images in hand to normalised tensors, with
DINO's probabilities. Pillow's form runs in as many processes as there are threads. Runs are interleaved, and ratios are
those of their fastest. Exits with 1 where patch mode takes more than 1.3 times as long as image mode, or torchvision
less than twice as long as either. Cells of 8 px of small views are reported only.
"""

import argparse
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torchvision.transforms as tv
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from patchssl.augmentation import prepare_views, view_settings
from patchssl.config import PhotometricConfig
from patchssl.photometric import IMAGENET_MEAN, IMAGENET_STD
from patchssl.structs import Boxes, SampleKeys, ViewGroup

NUM_IMAGES, NUM_RUNS = 16, 7
LEAST_SPEEDUP, MOST_PATCH_RATIO = 2.0, 1.3


def pictures(num: int, side: int, seed: int) -> Tensor:
    """Gradients, shapes and texture (num, 3, side, side) uint8, from noise of several sizes."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        weight * functional.interpolate(torch.rand(num, 3, size, size, generator=generator), side, mode="bicubic")
        for size, weight in ((3, 0.5), (12, 0.3), (side // 4, 0.15), (side, 0.05))
    ]
    summed = torch.stack(layers).sum(0)
    low, high = summed.amin((1, 2, 3), keepdim=True), summed.amax((1, 2, 3), keepdim=True)
    return (255 * (summed - low) / (high - low)).round().byte()


def view_group(num_views: int, side: int) -> ViewGroup:
    pixels = pictures(NUM_IMAGES * num_views, side, num_views).unflatten(0, (NUM_IMAGES, num_views))
    nowhere = torch.zeros(NUM_IMAGES, num_views)
    return ViewGroup(pixels, Boxes(nowhere[..., None].expand(-1, -1, 4), nowhere > 0))


def ours(groups: Sequence[ViewGroup], patch_probability: float, cell_px: int) -> Callable[[], object]:
    """The augmentation of the batch."""
    settings = view_settings(PhotometricConfig.model_validate({"patch_probability": patch_probability}), cell_px)
    keys = SampleKeys(torch.zeros(NUM_IMAGES, dtype=torch.int64), torch.arange(NUM_IMAGES))
    return lambda: prepare_views(groups, keys, settings, seed=0, device=torch.device("cpu"))


class Blur:
    """Pillow's, with DINO's radius."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def theirs(blur_probability: float, solarise_probability: float) -> tv.Compose:
    return tv.Compose(
        [
            tv.RandomApply([tv.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            tv.RandomGrayscale(0.2),
            Blur(blur_probability),
            tv.RandomSolarize(128, solarise_probability),
            tv.ToTensor(),
            tv.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


KINDS = (theirs(1.0, 0.0), theirs(0.1, 0.2), theirs(0.5, 0.0))


def by_pillow(images: list[list[Image.Image]]) -> list[list[Tensor]]:
    """One view after the other."""
    torch.set_num_threads(1)
    return [[KINDS[min(number, 2)](view) for number, view in enumerate(views)] for views in images]


def in_processes(images: list[list[Image.Image]], num: int) -> tuple[float, list[int]]:
    """Fastest seconds of the batch when each process has its part of the images in hand, without sending results."""
    context = multiprocessing.get_context("fork")
    barrier, times = context.Barrier(num), context.SimpleQueue()

    def work(part: list[list[Image.Image]]) -> None:
        for _ in range(3):
            barrier.wait()
            start = time.perf_counter()
            by_pillow(part)
            barrier.wait()
            times.put(time.perf_counter() - start)

    workers = [context.Process(target=work, args=(images[number::num],)) for number in range(num)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return min(times.get() for _ in range(3 * num)), [worker.exitcode or 0 for worker in workers]


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> int:
    """Print milliseconds an image, and the ratios."""
    parser = argparse.ArgumentParser(description="speed of photometric augmentation")
    parser.add_argument("--threads", type=int, default=1)
    num_threads: int = parser.parse_args().threads
    large, small = [view_group(2, 224), view_group(8, 96)], [view_group(2, 32), view_group(8, 16)]
    images = [
        [tv.functional.to_pil_image(view) for group in large for view in group.pixels[row]] for row in range(NUM_IMAGES)
    ]
    runs = {
        "image": ours(large, 0.0, 16),
        "patch, 16 px": ours(large, 1.0, 16),
        "image, 32 px views": ours(small, 0.0, 8),
        "patch, 8 px of 32 px views": ours(small, 1.0, 8),
    }
    times: dict[str, list[float]] = {name: [] for name in [*runs, "torchvision"]}
    for _ in range(NUM_RUNS):
        torch.set_num_threads(num_threads)
        for name, run in runs.items():
            times[name].append(timed(run))
        if num_threads == 1:
            times["torchvision"].append(timed(lambda: by_pillow(images)))
    if num_threads > 1:
        seconds, codes = in_processes(images, num_threads)
        if any(codes):
            print(f"processes ended with {codes}")
            return 1
        times["torchvision"].append(seconds)
    fastest = {name: min(some[1:] or some) for name, some in times.items()}
    print(f"{NUM_IMAGES} images, {num_threads} threads")
    for name, seconds in fastest.items():
        print(f"{name:28}{seconds / NUM_IMAGES * 1e3:8.2f} ms an image")
    small_ratio = fastest["patch, 8 px of 32 px views"] / fastest["image, 32 px views"]
    patch_ratio = fastest["patch, 16 px"] / fastest["image"]
    speedups = [fastest["torchvision"] / fastest[name] for name in ("image", "patch, 16 px")]
    print(f"patch / image {patch_ratio:.2f}; of 32 px views {small_ratio:.2f}")
    print(f"torchvision / image {speedups[0]:.2f}; torchvision / patch {speedups[1]:.2f}")
    return int(patch_ratio > MOST_PATCH_RATIO or min(speedups) < LEAST_SPEEDUP)


if __name__ == "__main__":
    sys.exit(main())
