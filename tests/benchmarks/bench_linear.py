"""What probes on features computed once give up and save against a head trained on augmented images.

    python tests/benchmarks/bench_linear.py DATA SPEC [--device cpu] [--workers 2] [--precision auto]

Prints accuracy and time of `dino`, and of `dinov2` and `logistic` how far they are from it; times include computing
the features. Exits with 1 where one of them is more than 0.5 points below `dino` or takes more than a twentieth of its
time.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable

from patchssl.backbones import Backbone, load_backbone
from patchssl.cli.image_progress import image_progress
from patchssl.data.images import ImageSource
from patchssl.data.sources import open_labelled
from patchssl.evaluate.extraction import extract
from patchssl.evaluate.features import Features
from patchssl.evaluate.linear import PROTOCOLS, needed_tokens, score, score_images
from patchssl.evaluate.outcomes import Scored

MOST_POINTS, LEAST_RATIO = 0.5, 20


def run(
    protocol: str,
    backbone: Backbone,
    sources: dict[str, ImageSource],
    arguments: argparse.Namespace,
) -> Scored:
    """One protocol from images to row."""
    tokens = needed_tokens(protocol, num_blocks=backbone.num_blocks, dim=backbone.dim)
    loading = {
        "batch_size": arguments.batch_size,
        "num_workers": arguments.workers,
        "precision": arguments.precision,
    }
    on_crops = PROTOCOLS[protocol].needs_images
    features: dict[str, dict[str, Features]] = {
        name: dict(extract(backbone, source, tokens=tokens, **loading).features)
        for name, source in sources.items()
        if name == "test" or not on_crops
    }
    if not on_crops:
        return score(features["train"], features["test"], protocol=protocol, device=arguments.device)
    total = PROTOCOLS[protocol].defaults["epochs"] * len(sources["train"])
    with image_progress("augmented images", total, quiet=False) as progress:
        return score_images(backbone, sources, features["test"], protocol=protocol, progress=progress, **loading)


def timed(make: Callable[[], Scored]) -> tuple[Scored, float, float]:
    """A row, how many seconds it took, and how many of processors, loader processes included."""
    start, busy = time.perf_counter(), sum(os.times()[:4])
    return make(), time.perf_counter() - start, sum(os.times()[:4]) - busy


def main() -> int:
    """Run all protocols, print a line for each, and tell whether the quick ones keep up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("spec")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.spec, checkpoint_key="teacher", device=arguments.device, seed=0)
    sources = open_labelled(arguments.data, apply_exif=False)
    print(f"{'protocol':10s} {'top1 %':>7s} {'seconds':>8s} {'CPU s':>8s} {'points':>7s} {'ratio':>6s} {'of CPU':>7s}")
    reached = True
    dino: tuple[float, float, float] | None = None
    for protocol in ("dino", "dinov2", "logistic"):
        scored, seconds, busy = timed(lambda name=protocol: run(name, backbone, sources, arguments))  # type: ignore[misc]
        points = 100 * scored.row.metrics["top1"].value
        line = f"{protocol:10s} {points:7.2f} {seconds:8.1f} {busy:8.1f}"
        if dino is None:
            dino = points, seconds, busy
        else:
            line += f" {points - dino[0]:+7.2f} {dino[1] / seconds:5.1f}x {dino[2] / busy:6.1f}x"
            line += f"  {scored.row.details['chosen']}"
            reached &= points >= dino[0] - MOST_POINTS and dino[1] / seconds >= LEAST_RATIO
        print(line, flush=True)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
