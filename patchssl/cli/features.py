"""DATA and a backbone → features, with progress."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from patchssl.cli.bundles import ComputeOptions
from patchssl.cli.image_progress import image_progress

if TYPE_CHECKING:
    from patchssl.backbones import Backbone
    from patchssl.data.images import ImageSource
    from patchssl.evaluate.features import Features


def compute_features(
    sources: "Mapping[str, ImageSource]",
    backbone: "Backbone",
    tokens: Sequence[str],
    *,
    compute: ComputeOptions,
    quiet: bool,
) -> "dict[str, dict[str, Features]]":
    """Features of each part of the data, for each choice of tokens.

    Args:
        sources: by the name of the part, for instance `train`.
        backbone: on the device of `compute`.
        tokens: what to take, each as `patchssl.pooling.parse_tokens` reads it.
        compute: how.
        quiet: no progress.

    Returns:
        part → tokens → features.
    """
    from patchssl.evaluate.extraction import extract

    features = {}
    for part, source in sources.items():
        told = {"train": "training images"}.get(part, f"{part} images")
        with image_progress(told, len(source), quiet=quiet) as progress:
            features[part] = dict(
                extract(
                    backbone,
                    source,
                    tokens=tokens,
                    batch_size=compute.batch_size,
                    num_workers=compute.workers,
                    precision=compute.precision,
                    max_bad_fraction=compute.max_bad_fraction,
                    progress=progress,
                ).features
            )
    return features
