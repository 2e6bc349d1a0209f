"""Images → descriptors, shard after shard, in forward passes that do not wait for reading or writing."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from patchssl.backbones import Backbone
from patchssl.data.crops import CropBatch, read_crops
from patchssl.data.images import ImageSource
from patchssl.environment import cpu_computes_bf16
from patchssl.errors import ConfigError
from patchssl.evaluate.extracting.store import Shard
from patchssl.pooling import Part, num_blocks_of, pool

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn `auto` into bf16 where the device computes it natively, and fp32 elsewhere; other names pass.

    Native are CUDA from compute capability 8.0 on, and processors with AVX512-BF16 or AMX. Nothing is timed, so that
    the same machine always answers the same.

    Raises:
        ConfigError: there is no precision of that name.
    """
    if name == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if on_gpu or (device.type == "cpu" and cpu_computes_bf16()) else "fp32"
    if name not in _DTYPES:
        raise ConfigError(f"precision {name!r} is unknown; allowed: auto, {', '.join(_DTYPES)}")
    return name


@dataclass(frozen=True, slots=True)
class Work:
    """Consecutive shards that lack the same parts.

    Attributes:
        shards: their numbers.
        parts: what to compute for each of their images.
    """

    shards: range
    parts: tuple[Part, ...]


def plan_work(lacking: Sequence[tuple[int, tuple[Part, ...]]], *, shard_images: int, batch_size: int) -> list[Work]:
    """Group shards so that a batch finds enough images.

    Which shards go together follows from their numbers alone, wherever a batch fits into a shard.

    Args:
        lacking: numbers of shards, ascending, and the parts that each lacks.
        shard_images: images in a shard.
        batch_size: images per forward pass.
    """
    most = max(1, batch_size // shard_images)
    work: list[Work] = []
    for number, parts in lacking:
        last = work[-1] if work else None
        if last and last.parts == parts and last.shards.stop == number and len(last.shards) < most:
            work[-1] = Work(range(last.shards.start, number + 1), parts)
        else:
            work.append(Work(range(number, number + 1), parts))
    return work


def compute_shards(
    backbone: Backbone,
    source: ImageSource,
    work: Sequence[Work],
    *,
    shard_images: int,
    batch_size: int,
    num_workers: int,
    precision: str,
    on_batch: Callable[[CropBatch], None],
) -> Iterator[tuple[int, dict[Part, Shard]]]:
    """Compute shards in order.

    Args:
        backbone: on the device to compute on.
        source: the images.
        work: what to compute.
        shard_images: images in a shard.
        batch_size: images per forward pass.
        num_workers: processes that decode; 0 decodes in this one.
        precision: `fp32`, `bf16` or `fp16`.
        on_batch: called with each batch once it is read.

    Yields:
        The number of a shard and its parts.
    """
    steps = [step for item in work for step in _steps(item, shard_images, batch_size, len(source))]
    crops = read_crops(
        source,
        backbone.preprocess.crop,
        [step.images for step in steps],
        num_workers=num_workers,
        pin_memory=backbone.device.type == "cuda",
    )
    collected = _Collected(shard_images)
    # A GPU is given the next batch before the results of this one are fetched, so that it never waits for us.
    num_ahead = 1 if backbone.device.type == "cuda" else 0
    ahead: deque[tuple[_Step, CropBatch, dict[Part, Tensor]]] = deque()
    for step, batch in zip(steps, crops, strict=True):
        on_batch(batch)
        outputs = forward(backbone, batch.pixels, step.work.parts, precision) if batch.indices else {}
        ahead.append((step, batch, outputs))
        if len(ahead) > num_ahead:
            yield from collected.take(*ahead.popleft())
    while ahead:
        yield from collected.take(*ahead.popleft())


@dataclass(frozen=True, slots=True)
class _Step:
    """One forward pass."""

    work: Work
    images: range
    is_last: bool


def _steps(work: Work, shard_images: int, batch_size: int, num_images: int) -> Iterator[_Step]:
    end = min(work.shards.stop * shard_images, num_images)
    for start in range(work.shards.start * shard_images, end, batch_size):
        yield _Step(work, range(start, min(start + batch_size, end)), is_last=start + batch_size >= end)


@torch.inference_mode()
def forward(
    backbone: Backbone, pixels: Tensor | Sequence[Tensor], parts: Sequence[Part], precision: str
) -> dict[Part, Tensor]:
    """Run a backbone and take parts of its tokens.

    Images of equal size go through together. Where the preprocessing has several scales, a part is the mean over them.

    Args:
        backbone: on the device to compute on.
        pixels: (B, 3, h, w) uint8, cropped and not yet normalised, or (3, h, w) for each of B images.
        parts: what to take.
        precision: `fp32`, `bf16` or `fp16`.

    Returns:
        (B, D) float32 on the backbone's device for each part; of the kind `patches` (B, H, W, D).
    """
    if isinstance(pixels, Tensor):
        return _forward_equal(backbone, pixels, parts, precision)
    places: dict[torch.Size, list[int]] = {}
    for place, image in enumerate(pixels):
        places.setdefault(image.shape, []).append(place)
    order = torch.tensor([place for chosen in places.values() for place in chosen], device=backbone.device)
    outputs = [
        _forward_equal(backbone, torch.stack([pixels[place] for place in chosen]), parts, precision)
        for chosen in places.values()
    ]
    # Row i of what is put together belongs to image order[i].
    return {part: torch.cat([output[part] for output in outputs])[order.argsort()] for part in parts}


def _forward_equal(backbone: Backbone, pixels: Tensor, parts: Sequence[Part], precision: str) -> dict[Part, Tensor]:
    """Images of one size: (B, 3, h, w) uint8 → what `forward` returns."""
    device, dtype = backbone.device, _DTYPES[precision]
    preprocess = backbone.preprocess
    cast: AbstractContextManager[Any] = nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
    normalised = preprocess.normalise(pixels.to(device, non_blocking=True))
    pooled = []
    for image in _at_scales(backbone, normalised):
        with cast:
            blocks = backbone.last_blocks(image, num_blocks_of(parts))
        found = {part: pool(blocks, part).float() for part in parts}
        pooled.append(
            {part: functional.normalize(rows) for part, rows in found.items()} if preprocess.unit_scales else found
        )
    if len(pooled) > 1:
        return {part: torch.stack([found[part] for found in pooled]).mean(dim=0) for part in parts}
    grid = blocks[-1].grid
    return {part: rows.unflatten(1, grid) if part.kind == "patches" else rows for part, rows in pooled[0].items()}


def _at_scales(backbone: Backbone, normalised: Tensor) -> Iterator[Tensor]:
    """The images at every scale, cut at the right and below to whole patches, as a ViT of the originals does itself.

    Sides shorter than one patch are enlarged to it.
    """
    preprocess, multiple = backbone.preprocess, backbone.sizes.multiple_px
    least = max(multiple, backbone.sizes.min_px)
    for scale in preprocess.scales:
        image = normalised
        if scale != 1:
            image = functional.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
        height, width = image.shape[-2:]
        if min(height, width) < least:
            image = functional.interpolate(
                image, size=(max(height, least), max(width, least)), mode="bilinear", align_corners=False
            )
            height, width = image.shape[-2:]
        if preprocess.keeps_proportions or scale != 1:
            image = image[..., : height - height % multiple, : width - width % multiple]
        yield image


class _Collected:
    """The batches of one piece of work after the other."""

    def __init__(self, shard_images: int) -> None:
        self.shard_images = shard_images
        self._clear()

    def _clear(self) -> None:
        self.indices: list[int] = []
        self.unreadable: list[tuple[int, str, str]] = []
        self.rows: dict[Part, list[NDArray[np.float32]]] = {}

    def take(
        self, step: _Step, batch: CropBatch, outputs: dict[Part, Tensor]
    ) -> Iterator[tuple[int, dict[Part, Shard]]]:
        """Add a batch; hand out the shards when it is the last of its work."""
        self.indices += batch.indices
        self.unreadable += batch.unreadable
        for part, rows in outputs.items():
            self.rows.setdefault(part, []).append(rows.cpu().numpy())
        if step.is_last:
            yield from self._split(step.work)
            self._clear()

    def _split(self, work: Work) -> Iterator[tuple[int, dict[Part, Shard]]]:
        indices = np.array(self.indices, dtype=np.int64)
        # Where no image can be read, the width is unknown.
        rows = {
            part: np.concatenate(self.rows[part]) if part in self.rows else np.empty((0, 0), dtype=np.float32)
            for part in work.parts
        }
        for number in work.shards:
            ends = np.searchsorted(indices, [number * self.shard_images, (number + 1) * self.shard_images])
            inside = slice(int(ends[0]), int(ends[1]))
            bad = tuple(entry for entry in self.unreadable if entry[0] // self.shard_images == number)
            yield number, {part: Shard(values[inside], indices[inside], bad) for part, values in rows.items()}
