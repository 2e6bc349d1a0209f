"""How a suite computes features and measures costs on the command line."""

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from patchssl.cli.bundles import ComputeOptions
from patchssl.cli.features import compute_features
from patchssl.cli.image_progress import image_progress

if TYPE_CHECKING:
    from patchssl.backbones import Backbone
    from patchssl.evaluate.features import Features
    from patchssl.evaluate.suites.structs import Compute, Needs, Sources

logger = logging.getLogger(__name__)

# Enough to fill a CPU; more images only make each timed pass longer.
_CPU_COST_BATCH = 8


def extractor(
    compute: ComputeOptions, *, quiet: bool
) -> "Callable[[Sources, Backbone, Needs], dict[str, dict[str, Features]]]":
    """Give what computes the features that tasks need, with progress."""

    def extract(sources: "Sources", backbone: "Backbone", needs: "Needs") -> "dict[str, dict[str, Features]]":
        return {
            part: compute_features({part: sources[part]}, backbone, tokens, compute=compute, quiet=quiet)[part]
            for part, tokens in needs.items()
        }

    return extract


def suite_compute(compute: ComputeOptions, seed: int, *, quiet: bool) -> "Compute":
    """The options of computing, as a suite takes them."""
    from patchssl.evaluate.suites.structs import Compute

    return Compute(
        device=compute.device,
        precision=compute.precision,
        num_workers=compute.workers,
        batch_size=compute.batch_size,
        max_bad_fraction=compute.max_bad_fraction,
        seed=seed,
        progress=partial(image_progress, quiet=quiet),
    )


def cost_measurer(compute: ComputeOptions) -> "Callable[[Backbone], dict[str, Any]]":
    """Give what measures GFLOPs and images per second of a backbone."""
    from patchssl.evaluate.throughput import measure_cost

    batch_size = min(compute.batch_size, _CPU_COST_BATCH) if compute.device == "cpu" else compute.batch_size

    def measure(backbone: "Backbone") -> "dict[str, Any]":
        found = measure_cost(backbone, batch_size=batch_size, precision=compute.precision)
        logger.info("%s: %.3g GFLOPs, %.0f images/s", backbone.spec, found.gflops, found.images_per_s)
        return found.details()

    return measure
