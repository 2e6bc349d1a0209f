"""DATA and a backbone → features, with progress."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from patchssl.cli.bundles import ComputeOptions
from patchssl.cli.image_progress import image_progress
from patchssl.cli.processes import Terminated

if TYPE_CHECKING:
    from patchssl.backbones import Backbone
    from patchssl.data.images import ImageSource
    from patchssl.evaluate.extracting.store import FeatureStore
    from patchssl.evaluate.features import Features

logger = logging.getLogger(__name__)


def compute_features(
    sources: "Mapping[str, ImageSource]",
    backbone: "Backbone",
    tokens: Sequence[str],
    *,
    compute: ComputeOptions,
    quiet: bool,
) -> "dict[str, dict[str, Features]]":
    """Features of each part of the data, for each choice of tokens.

    Under torchrun every process computes its share, and only the one that reports gets them; see `is_reporting`.

    Args:
        sources: by the name of the part, for instance `train`.
        backbone: on the device of `compute`.
        tokens: what to take, each as `patchssl.pooling.parse_tokens` reads it; not `patches`.
        compute: how.
        quiet: no progress.

    Returns:
        part → tokens → features; in the other processes part → nothing.
    """
    from patchssl.evaluate.extracting.store import FeatureStore

    store = None if compute.cache is None else FeatureStore(compute.cache)
    try:
        return {
            part: _compute_part(part, source, backbone, tokens, compute, store, quiet)
            for part, source in sources.items()
        }
    except (KeyboardInterrupt, Terminated):
        if compute.cache is None:
            logger.warning("stopped; with --no-cache nothing is kept, and the next time begins anew")
        else:
            logger.warning("stopped; finished features are kept in %s, the same command goes on there", compute.cache)
        raise


def _compute_part(
    part: str,
    source: "ImageSource",
    backbone: "Backbone",
    tokens: Sequence[str],
    compute: ComputeOptions,
    store: "FeatureStore | None",
    quiet: bool,
) -> "dict[str, Features]":
    from patchssl.evaluate.extraction import extract

    told = {"train": "training images"}.get(part, f"{part} images")
    with image_progress(told, len(source), quiet=quiet) as progress:
        extraction = extract(
            backbone,
            source,
            tokens=tokens,
            batch_size=compute.batch_size,
            num_workers=compute.workers,
            precision=compute.precision,
            max_bad_fraction=compute.max_bad_fraction,
            progress=progress,
            store=store,
        )
    if extraction.num_stored:
        logger.info("%s: features of %d of %d were in %s", told, extraction.num_stored, len(source), compute.cache)
    return dict(extraction.features)
