"""A backbone and a source of images → features."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from patchssl.backbones import Backbone, Preprocess
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ImageSource
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.features import Features
from patchssl.pooling import Part, concatenate, num_blocks_of, parse_tokens, pool

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_NUM_NAMED = 5


@dataclass(frozen=True, slots=True)
class Extraction:
    """Features and what happened on the way.

    Attributes:
        features: of the readable images, in the source's order, for each choice of tokens.
        unreadable: path and reason of each image that was left out.
    """

    features: Mapping[str, Features]
    unreadable: tuple[tuple[str, str], ...]


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn `auto` into bf16 on CUDA where it is native, and fp32 elsewhere; other names pass.

    Raises:
        ConfigError: there is no precision of that name.
    """
    if name == "auto":
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if native else "fp32"
    if name not in _DTYPES:
        raise ConfigError(f"precision {name!r} is unknown; allowed: auto, {', '.join(_DTYPES)}")
    return name


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
) -> Extraction:
    """Compute descriptors of every image, all of them from one pass.

    Args:
        backbone: on the device to compute on; its preprocessing is applied in the loader's processes.
        source: M images.
        tokens: what to take, each as `patchssl.pooling.parse_tokens` reads it.
        batch_size: images per forward pass; it changes features by rounding only.
        num_workers: processes that decode; 0 decodes in this one.
        precision: `auto`, `fp32`, `bf16` or `fp16` of the forward pass; features are float32.
        max_bad_fraction: unreadable images above this fraction of M are an error.
        progress: called with the number of images done since the last call.

    Raises:
        DataError: too many images are unreadable, or none is readable.
    """
    resolved = resolve_precision(precision, backbone.device)
    parts = {name: parse_tokens(name) for name in tokens}
    loader = DataLoader(
        _Crops(source, backbone.preprocess),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=backbone.device.type == "cuda",
    )
    features: dict[str, list[NDArray[np.float32]]] = {name: [] for name in parts}
    kept: list[int] = []
    bad: list[tuple[str, str]] = []
    num_done = 0
    for batch in loader:
        bad += batch.bad
        num_done += len(batch.indices) + len(batch.bad)
        # At the first image too many, not after hours at the end.
        if len(bad) > max_bad_fraction * len(source):
            raise DataError(_too_many_bad(bad, num_done, source, max_bad_fraction))
        if batch.indices:
            for name, values in _forward(backbone, batch.pixels, parts, resolved).items():
                features[name].append(values)
            kept += batch.indices
        if progress is not None:
            progress(len(batch.indices) + len(batch.bad))
    if not kept:
        raise DataError(f"{source.location} holds no readable image ({len(source)} tried); nothing to evaluate")
    for path, reason in bad:
        logger.warning("left out %s: %s", path, reason)
    labels = None if source.labels is None else source.labels[kept]
    ids = np.array([str(source.ids[index]) for index in kept], dtype=np.str_)
    meta = _meta(backbone, source, resolved, num_unreadable=len(bad))
    found = {
        name: Features(np.concatenate(values), labels, ids, {**meta, "settings": {"token": name, **meta["settings"]}})
        for name, values in features.items()
    }
    return Extraction(found, tuple(bad))


@dataclass(frozen=True, slots=True)
class _Batch:
    indices: list[int]
    pixels: Tensor  # (B, 3, side, side) uint8
    bad: list[tuple[str, str]]

    def pin_memory(self) -> "_Batch":
        return _Batch(self.indices, self.pixels.pin_memory(), self.bad)


class _Crops(Dataset[tuple[int, Tensor | UnreadableImage]]):
    def __init__(self, source: ImageSource, preprocess: Preprocess) -> None:
        self.source, self.preprocess = source, preprocess

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Tensor | UnreadableImage]:
        try:
            return index, self.preprocess.crop(self.source.read(index))
        except UnreadableImage as error:
            return index, error


def _collate(samples: Sequence[tuple[int, Tensor | UnreadableImage]]) -> _Batch:
    good = [(index, crop) for index, crop in samples if isinstance(crop, Tensor)]
    bad = [(error.path, error.reason) for _, error in samples if isinstance(error, UnreadableImage)]
    pixels = torch.stack([crop for _, crop in good]) if good else torch.empty(0, dtype=torch.uint8)
    return _Batch([index for index, _ in good], pixels, bad)


@torch.inference_mode()
def _forward(
    backbone: Backbone, pixels: Tensor, choices: Mapping[str, Sequence[Part]], precision: str
) -> dict[str, NDArray[np.float32]]:
    """(B, D) descriptors of (B, 3, side, side) uint8 pixels, for each choice of tokens."""
    device, dtype = backbone.device, _DTYPES[precision]
    num_blocks = max(num_blocks_of(parts) for parts in choices.values())
    cast: AbstractContextManager[Any] = nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
    with cast:
        blocks = backbone.last_blocks(backbone.preprocess.normalise(pixels.to(device, non_blocking=True)), num_blocks)
    return {
        name: concatenate([pool(blocks, part).float() for part in parts]).cpu().numpy()
        for name, parts in choices.items()
    }


def _too_many_bad(bad: list[tuple[str, str]], num_done: int, source: ImageSource, limit: float) -> str:
    first = "; ".join(f"{path}: {reason}" for path, reason in bad[:_NUM_NAMED])
    return (
        f"{len(bad)} of the first {num_done} images of {source.location} ({len(source)} in all) are unreadable, "
        f"allowed are {limit:.1%} of all; mend or remove them or raise --max-bad-fraction. The first: {first}"
    )


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
            "image_px": preprocess.image_px,
            "resize_px": preprocess.resize_px,
            "resize": preprocess.resize,
            "crop": "centre",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "precision": precision,
            "checkpoint_key": backbone.checkpoint_key,
        },
    }
