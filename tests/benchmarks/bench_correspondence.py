"""How near correspondence, with decoding, warping and matching, comes to its forward passes alone; run by hand.

    python tests/benchmarks/bench_correspondence.py FOLDER [--model SPEC] [--precision fp32]

Both are measured in turns in one run, on the same number of views and in the same precision; medians count. Views are
made by one worker process while the rest of the cores compute. What warping and matching cost by themselves is printed
besides; on a machine that others use, too, compare those core-seconds.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from patchssl.backbones import load_backbone
from patchssl.data.sources import open_unlabelled
from patchssl.evaluate.correspondence import prepare, score_images
from patchssl.evaluate.extracting.forward import forward, resolve_precision
from patchssl.evaluate.patches.rating import rate
from patchssl.evaluate.patches.warped_pairs import WarpedPairs
from patchssl.pooling import parse_tokens
from patchssl.warps import KINDS

PATCHES = parse_tokens("patches")


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Time on the clock, and of all threads of this process, without its workers'."""
    clock, cores = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - cores


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="timm:vit_small_patch16_224@random")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    backbone, source = prepare(load_backbone(options.model)), open_unlabelled(options.folder)
    precision, num = resolve_precision(options.precision, backbone.device), min(options.num_images, len(source))
    side, num_views = backbone.preprocess.image_px, 1 + len(KINDS)
    pairs = WarpedPairs(source, np.arange(num), list(KINDS), side=side, num_pairs=1, pairs_per_step=num, seed=0)

    torch.set_num_threads(1)
    _, warp_s = seconds(lambda: pairs[0])
    views, _, _ = pairs[0]
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    parts = views.pixels.flatten(0, 1).split(options.batch_size)

    def run_forward() -> list[torch.Tensor]:
        return [forward(backbone, part, PATCHES, precision)[PATCHES[0]] for part in parts]

    def run_whole() -> None:
        score_images(
            backbone, source, max_images=num, batch_size=options.batch_size, num_workers=1, precision=precision
        )

    made = torch.cat(run_forward())
    features = made.flatten(1, 2).unflatten(0, (num, num_views))
    _, match_s = seconds(lambda: rate(views, features, (made.shape[1], made.shape[2]), (0.5, 1.0, 2.0)))
    turns = [(seconds(run_forward), seconds(run_whole)) for _ in range(options.rounds)]
    bare, whole = (np.median([turn[kind] for turn in turns], axis=0) for kind in (0, 1))
    ratio = np.median([turn[0][0] / turn[1][0] for turn in turns])
    print(
        f"{backbone.arch}, {side} px, {precision}, {num} images of {num_views} views, {torch.get_num_threads()} threads"
    )
    print(
        f"forward {num / bare[0]:.2f}, correspondence {num / whole[0]:.2f} images/s, ratio {ratio:.3f}; core-ms per "
        f"image: reading and warping {1e3 * warp_s / num:.1f}, forward {1e3 * bare[1] / num:.1f}, matching "
        f"{1e3 * match_s / num:.1f}"
    )


if __name__ == "__main__":
    main()
