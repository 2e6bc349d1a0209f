"""A backbone and a source of images → features, of which a store keeps what is done."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl import ranks
from patchssl.backbones import Backbone
from patchssl.data.crops import CropBatch
from patchssl.data.images import ImageSource
from patchssl.errors import ConfigError, DataError, PatchsslError
from patchssl.evaluate.extracting.feature_key import feature_key
from patchssl.evaluate.extracting.forward import compute_shards, plan_work, resolve_precision
from patchssl.evaluate.extracting.shards import Lacking, ShardSet
from patchssl.evaluate.extracting.store import SHARD_IMAGES, FeatureStore, Shelf
from patchssl.evaluate.features import Features, PatchFeatures
from patchssl.pooling import Part, parse_tokens

__all__ = ["Extraction", "extract", "resolve_precision"]

logger = logging.getLogger(__name__)

_NUM_NAMED = 5


@dataclass(frozen=True, slots=True)
class Extraction:
    """Features and what happened on the way.

    Attributes:
        features: of the readable images, in the source's order, for each choice of tokens but `patches`.
        unreadable: path and reason of each image that was left out.
        patches: the patch tokens, if they were asked for.
        num_stored: images of which everything was in the store already.
    """

    features: Mapping[str, Features]
    unreadable: tuple[tuple[str, str], ...]
    patches: PatchFeatures | None = None
    num_stored: int = 0


def extract(
    backbone: Backbone,
    source: ImageSource,
    *,
    tokens: Sequence[str] = ("cls",),
    batch_size: int,
    num_workers: int = 0,
    precision: str = "auto",
    max_bad_fraction: float = 0.05,
    progress: Callable[[int], None] | None = None,
    store: FeatureStore | None = None,
) -> Extraction:
    """Compute descriptors of every image, all of them from one pass.

    With a store, what it has is read and only the rest computed; what is computed is kept at once, shard by shard.
    Several processes (`patchssl.ranks`) share the shards through the store, and rank 0 reads them all.

    Patch tokens are many: they are never held in memory all at once, but shard by shard and then read from disk, from
    a file without a name where there is no store.

    Args:
        backbone: on the device to compute on; its preprocessing is applied in the loader's processes.
        source: M images.
        tokens: what to take, each as `patchssl.pooling.parse_tokens` reads it.
        batch_size: images per forward pass; it changes features by rounding only.
        num_workers: processes that decode; 0 decodes in this one.
        precision: `auto`, `fp32`, `bf16` or `fp16` of the forward pass; features are float32.
        max_bad_fraction: unreadable images above this fraction of M are an error.
        progress: called with the number of images done since the last call.
        store: keeps features; one that cannot be written is told and done without, by a single process.

    Returns:
        The features; of ranks other than 0 none.

    Raises:
        ConfigError: several processes have no store to share; patches are asked for where images differ in size.
        DataError: too many images are unreadable, or none is readable; processes see different data or models, or
            several cannot write the store.
    """
    choices = {name: parse_tokens(name) for name in tokens}
    parts = tuple(dict.fromkeys(part for chosen in choices.values() for part in chosen))
    if backbone.preprocess.keeps_proportions or len(backbone.preprocess.scales) > 1:
        _refuse_patches(parts)
    if store is None and ranks.world_size() > 1:
        raise ConfigError(
            f"{ranks.world_size()} processes share their features through a store; let them have one (--cache DIR)"
        )
    resolved = ranks.from_main(resolve_precision(precision, backbone.device))
    _check_same(backbone, source)
    with _shelf(store, backbone, source, parts, resolved) as shelf:
        shards = ShardSet(
            shelf,
            parts,
            num_images=len(source),
            shard_images=SHARD_IMAGES if shelf is None else shelf.shard_images,
            must_store=ranks.world_size() > 1 or any(part.kind == "patches" for part in parts),
        )
        lacking = ranks.from_main(shards.find() if ranks.is_main() else [])
        num_stored = len(source) - sum(len(shards.images(number)) for number, _ in lacking)
        watch = _Watch(source, max_bad_fraction, shards.unreadable(), num_stored, progress)
        own = lacking[ranks.rank() :: ranks.world_size()]
        error: PatchsslError | None = None
        try:
            _compute(backbone, source, shards, own, watch, batch_size, num_workers, resolved)
        except PatchsslError as failure:
            error = failure
        ranks.fail_together(error)
        if not ranks.is_main():
            return Extraction({}, ())
        shards.complete()
        watch.check(shards.unreadable(), len(source))
        return _assemble(shards, choices, backbone, source, resolved, num_stored)


def _refuse_patches(parts: Sequence[Part]) -> None:
    if any(part.kind == "patches" for part in parts):
        raise ConfigError(
            "patches of images that differ in size or come at several scales form no common grid; take a square crop, "
            "or mean or gem of them"
        )


def _check_same(backbone: Backbone, source: ImageSource) -> None:
    """Refuse processes on copies of data or models that differ."""
    if ranks.world_size() > 1 and len(set(ranks.gather((backbone.weights_sha256, source.fingerprint())))) > 1:
        raise DataError(
            f"{source.location} or {backbone.spec} is not the same for all {ranks.world_size()} processes; every host "
            "must see the same files"
        )


@contextmanager
def _shelf(
    store: FeatureStore | None, backbone: Backbone, source: ImageSource, parts: Sequence[Part], precision: str
) -> Iterator[Shelf | None]:
    if store is not None:
        # One key for all: the times of files differ where hosts have copies of them.
        key = feature_key(backbone, source, precision=precision) if ranks.is_main() else {}
        yield store.shelf(ranks.from_main(key))
    elif any(part.kind == "patches" for part in parts):
        with TemporaryDirectory(prefix="patchssl-") as folder:
            # What is mapped into memory outlives its file's name.
            yield FeatureStore(Path(folder)).shelf({})
    else:
        yield None


def _compute(
    backbone: Backbone,
    source: ImageSource,
    shards: ShardSet,
    lacking: Lacking,
    watch: "_Watch",
    batch_size: int,
    num_workers: int,
    precision: str,
) -> None:
    computed = compute_shards(
        backbone,
        source,
        plan_work(lacking, shard_images=shards.shard_images, batch_size=batch_size),
        shard_images=shards.shard_images,
        batch_size=batch_size,
        num_workers=num_workers,
        precision=precision,
        on_batch=watch,
    )
    for number, parts in computed:
        shards.keep(number, parts)


class _Watch:
    """Counts images, and stops at the first unreadable one too many, not after hours at the end."""

    def __init__(
        self,
        source: ImageSource,
        max_bad_fraction: float,
        stored_bad: Sequence[tuple[int, str, str]],
        num_stored: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.source, self.max_bad_fraction, self.progress = source, max_bad_fraction, progress
        self.bad, self.num_done = list(stored_bad), num_stored
        self.check(self.bad, num_stored)
        if progress is not None and num_stored:
            progress(num_stored)

    def __call__(self, batch: CropBatch) -> None:
        num = len(batch.indices) + len(batch.unreadable)
        self.bad += batch.unreadable
        self.num_done += num
        self.check(self.bad, self.num_done)
        if self.progress is not None:
            self.progress(num)

    def check(self, bad: Sequence[tuple[int, str, str]], num_done: int) -> None:
        """Raise a DataError for too many of the images done so far."""
        if len(bad) <= self.max_bad_fraction * len(self.source):
            return
        first = "; ".join(f"{path}: {reason}" for _, path, reason in bad[:_NUM_NAMED])
        raise DataError(
            f"{len(bad)} of the first {num_done} images of {self.source.location} ({len(self.source)} in all) are "
            f"unreadable, allowed are {self.max_bad_fraction:.1%} of all; mend or remove them or raise "
            f"--max-bad-fraction. The first: {first}"
        )


def _assemble(
    shards: ShardSet,
    choices: Mapping[str, Sequence[Part]],
    backbone: Backbone,
    source: ImageSource,
    precision: str,
    num_stored: int,
) -> Extraction:
    bad = tuple((path, reason) for _, path, reason in shards.unreadable())
    for path, reason in bad:
        logger.warning("left out %s: %s", path, reason)
    kept = np.concatenate([shard.indices for shard in shards.of(shards.parts[0])])
    if not len(kept):
        raise DataError(f"{source.location} holds no readable image ({len(source)} tried); nothing to evaluate")
    labels = None if source.labels is None else source.labels[kept]
    ids = np.array([str(source.ids[index]) for index in kept], dtype=np.str_)
    meta = {**_meta(backbone, source, precision, num_unreadable=len(bad)), "num_stored": num_stored}
    features: dict[str, Features] = {}
    patches = None
    for name, parts in choices.items():
        told = {**meta, "settings": {"token": name, **meta["settings"]}}
        if parts[0].kind == "patches":
            pieces = tuple(shard.features for shard in shards.of(parts[0]) if len(shard.indices))
            patches = PatchFeatures(pieces, labels, ids, told)
        else:
            features[name] = Features(_joined(shards, parts, len(kept)), labels, ids, told)
    return Extraction(features, bad, patches, num_stored)


def _joined(shards: ShardSet, parts: Sequence[Part], num: int) -> NDArray[np.float32]:
    """The parts side by side, (num, sum of their widths)."""
    columns = [[shard.features for shard in shards.of(part) if len(shard.indices)] for part in parts]
    widths = [column[0].shape[1] for column in columns]
    joined = np.empty((num, sum(widths)), dtype=np.float32)
    for column, start, width in zip(columns, np.cumsum([0, *widths[:-1]]), widths, strict=True):
        np.concatenate(column, out=joined[:, start : start + width])
    return joined


def _meta(backbone: Backbone, source: ImageSource, precision: str, *, num_unreadable: int) -> dict[str, Any]:
    preprocess = backbone.preprocess
    return {
        "model": backbone.facts(),
        "dataset": {
            "name": source.name,
            "path_name": source.location,
            "fingerprint": source.fingerprint(),
            "num_unreadable": num_unreadable,
        },
        "settings": {
            "pooling": backbone.pooling,
            **preprocess.settings(),
            "precision": precision,
            "checkpoint_key": backbone.checkpoint_key,
        },
    }
