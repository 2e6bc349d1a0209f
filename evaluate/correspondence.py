"""Patches of one view found again in another by nearest neighbour: what a patch-level method is for, without labels.

Two views of an image are made with known geometry (`patchssl.warps`), and every patch of the first whose centre the
second shows too is looked for there by the cosine of the last block's tokens. The accuracy within t is the share of
patches for which the patch found lies at most t patches from the truth (`patchssl.evaluate.patches.hits`); of an image
it is that of all its patches, and images count alike. Beside it stand, for the same patches: what a patch drawn by
chance gives, what the same place of the grid gives, and what the patches' pixels give (averaged to 4 x 4, by cosine).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchssl.backbones import Backbone
from patchssl.data.images import ImageSource
from patchssl.data.loader import BadImages, iterate
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.extracting.forward import forward, resolve_precision
from patchssl.evaluate.features import Features
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.patches.protocols import PROTOCOLS, WarpProtocol, choose_images, choose_kinds, find_protocol
from patchssl.evaluate.patches.rating import FLOORS, FOUND, Tally, metric_name, rate
from patchssl.evaluate.patches.warped_pairs import WarpedPairs
from patchssl.evaluate.scoring import make_row
from patchssl.pooling import parse_tokens

__all__ = ["PROTOCOLS", "patch_grid", "prepare", "score_images"]

logger = logging.getLogger(__name__)

(_PATCHES,) = parse_tokens("patches")


def prepare(backbone: Backbone, protocol: str = "warps", *, image_size: int | None = None) -> Backbone:
    """The backbone for the side of the views: that of the classification protocols, runs of ours their own.

    Args:
        backbone: any.
        protocol: a key of PROTOCOLS.
        image_size: another side, px.

    Raises:
        ConfigError: the protocol is unknown, or the network does not take that size.
    """
    find_protocol(protocol)
    sized = backbone.with_protocol_geometry()
    return sized if image_size is None else sized.at_size(image_size)


def patch_grid(backbone: Backbone) -> tuple[int, int]:
    """(H, W) patches that a backbone makes of a view.

    Raises:
        ConfigError: they are too few to be looked for.
    """
    side = backbone.preprocess.image_px
    black = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    height, width = forward(backbone, black, [_PATCHES], "fp32")[_PATCHES].shape[1:3]
    if min(height, width) < 2:
        raise ConfigError(
            f"{backbone.spec} makes {height} x {width} patches of an image of {side} px; correspondence needs at least "
            "2 x 2: take a larger --image-size, or a model with patches. What raw pixels give stands in every row"
        )
    return height, width


def score_images(
    backbone: Backbone,
    source: ImageSource,
    *,
    protocol: str = "warps",
    views: int | None = None,
    kinds: Sequence[str] | None = None,
    max_images: int | None = None,
    noise: float = 0.0,
    batch_size: int = 64,
    num_workers: int = 0,
    precision: str = "auto",
    max_bad_fraction: float = 0.05,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Scored:
    """Find patches of a first view again in a second, for every kind of warp.

    The views are made and matched batch by batch; only the hits are kept.

    Args:
        backbone: on the device to compute on, for views of the size that its preprocessing names; `prepare` gives it.
        source: M images; labels are not looked at.
        protocol: a key of PROTOCOLS.
        views: pairs of views of each image and kind; this and the following by the protocol where they are None.
        kinds: of warps, keys of `patchssl.warps.KINDS`.
        max_images: use as many at most, drawn by the seed.
        noise: standard deviation of what is added to every view by itself, of the range from black to white.
        batch_size: views in a forward pass; with the two that follow it changes the number by rounding only.
        num_workers: processes that decode and warp; 0 does it in this one.
        precision: `auto`, `fp32`, `bf16` or `fp16` of the forward pass.
        max_bad_fraction: unreadable or too small images above this fraction of those used are an error.
        seed: of warps, choice of images and bootstrap intervals, and what fresh weights were drawn from.
        progress: called with the number of first views done since the last call, `views` of each image.

    Raises:
        ConfigError: protocol or kind are unknown, a number is out of range, or the backbone has too few patches.
        DataError: too many images are unreadable, features are not finite, or no patch of a kind can be looked for.
    """
    defaults = find_protocol(protocol)
    num_pairs = defaults.views if views is None else views
    for name, number in (("views", num_pairs), ("max_images", max_images), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}; it must be at least 1")
    if not 0 <= noise <= 1:
        raise ConfigError(f"noise is {noise}; allowed: 0 to 1, its standard deviation from black to white")
    chosen = choose_kinds(defaults.kinds if kinds is None else kinds)
    images = choose_images(len(source), max_images, seed=seed)
    grid, resolved = patch_grid(backbone), resolve_precision(precision, backbone.device)
    start = time.perf_counter()
    pairs = WarpedPairs(
        source,
        images,
        chosen,
        side=backbone.preprocess.image_px,
        num_pairs=num_pairs,
        pairs_per_step=max(1, batch_size // (1 + len(chosen))),
        seed=seed,
        noise=noise,
    )
    tally = Tally(images, chosen, defaults.radii)
    _fill(tally, backbone, pairs, grid, _Loading(batch_size, num_workers, resolved, max_bad_fraction), progress)
    meaning = {
        "similarity": "cosine of the last block's patches",
        "distance": "larger of across and down, in patches of the second view",
        "kinds": list(chosen),
        "views": num_pairs,
        "grid": list(grid),
        **({"noise": noise} if noise else {}),
        **({"max_images": len(images), "images_drawn_by": seed} if len(images) < len(source) else {}),
    }
    return _make_row(defaults, backbone, source, tally, meaning, resolved, time.perf_counter() - start, seed)


@dataclass(frozen=True, slots=True)
class _Loading:
    """How views get to the backbone; it changes the outcome by rounding only."""

    batch_size: int
    num_workers: int
    precision: str
    max_bad_fraction: float


def _fill(
    tally: Tally,
    backbone: Backbone,
    pairs: WarpedPairs,
    grid: tuple[int, int],
    loading: _Loading,
    progress: Callable[[int], None] | None,
) -> None:
    """Match all views, step by step."""
    bad_images = BadImages(len(tally.images), loading.max_bad_fraction)
    pin_memory = backbone.device.type == "cuda"
    made = iterate(pairs, first_step=0, workers=loading.num_workers, pin_memory=pin_memory)
    for step, (warped, keys, bad) in enumerate(made):
        for error in bad_images.add(bad):
            logger.warning("left out %s", error)
        if len(keys):
            features = _features(backbone, warped.pixels, loading.batch_size, loading.precision)
            start = time.perf_counter()
            tally.add(keys.index.numpy(), *rate(warped, features, grid, tally.radii))
            tally.seconds += time.perf_counter() - start
        if progress is not None:
            progress(len(pairs.units_of(step)))


def _features(backbone: Backbone, pixels: Tensor, batch_size: int, precision: str) -> Tensor:
    """Patches (B, V, N, D) of views (B, V, 3, side, side)."""
    parts = pixels.flatten(0, 1).split(batch_size)
    patches = torch.cat([forward(backbone, part, [_PATCHES], precision)[_PATCHES].flatten(1, 2) for part in parts])
    if not torch.isfinite(patches).all():
        raise DataError(
            f"patches of {backbone.spec} hold NaN or infinite values; the weights may be broken, or fp16 too narrow: "
            "try fp32"
        )
    return patches.view(*pixels.shape[:2], *patches.shape[1:])


def _make_row(
    protocol: WarpProtocol,
    backbone: Backbone,
    source: ImageSource,
    tally: Tally,
    meaning: Mapping[str, Any],
    precision: str,
    seconds: float,
    seed: int,
) -> Scored:
    found = tally.values(FOUND)
    _check_counted(tally, found, source)
    floors = {
        rater: {name: float(np.nanmean(values)) for name, values in tally.values(rater).items()} for rater in FLOORS
    }
    num_patches = dict(zip(tally.kinds, tally.num_patches.sum(0).tolist(), strict=True))
    return make_row(
        task="correspondence",
        protocol=protocol.name,
        parts={"images": _without_features(backbone, source, tally, precision)},
        values=found,
        headline=metric_name(protocol.headline_radius),
        meaning=meaning,
        settings={},
        seconds={"features": seconds - tally.seconds, "evaluate": tally.seconds},
        device=backbone.device.type,
        seed=seed,
        details={**floors, "num_patches": num_patches},
    )


def _check_counted(tally: Tally, found: Mapping[str, NDArray[np.float64]], source: ImageSource) -> None:
    if not tally.is_read.any():
        raise DataError(f"{source.location} holds no readable image ({len(tally.images)} tried); nothing to evaluate")
    empty = [name for name, values in found.items() if np.isnan(values).all()]
    if empty:
        raise DataError(
            f"no image of {source.location} has patches that both views show for {', '.join(empty)}: the grid is "
            "coarse or the images are few; take a larger --image-size or more --views"
        )


def _without_features(backbone: Backbone, source: ImageSource, tally: Tally, precision: str) -> Features:
    """What a row tells of images whose features were not kept."""
    used = tally.images[tally.is_read]
    about = {
        "name": source.name,
        "path_name": source.location,
        "fingerprint": source.fingerprint(),
        "num_unreadable": len(tally.images) - len(used),
        "num_classes": 0,
    }
    preprocess = backbone.preprocess
    settings = {
        "image_px": preprocess.image_px,
        "resize": "bicubic",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "precision": precision,
        "checkpoint_key": backbone.checkpoint_key,
    }
    return Features(
        np.empty((len(used), 0), dtype=np.float32),
        None,
        np.array([str(source.ids[index]) for index in used], dtype=np.str_),
        {"model": backbone.facts(), "dataset": about, "settings": settings},
    )
