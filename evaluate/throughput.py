"""What a forward pass costs: floating point operations, and images per second."""

import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from patchssl.backbones import Backbone
from patchssl.evaluate.extraction import resolve_precision

_LEAST_REPEATS = 3
_NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of a backbone at one image size.

    Attributes:
        gflops: of one image, 2 for each multiply-add.
        images_per_s: of the bare forward pass on pixels that are on the device already.
        image_px: side of the crop.
        batch_size: images in a forward pass.
        precision: of the forward pass.
    """

    gflops: float
    images_per_s: float
    image_px: int
    batch_size: int
    precision: str

    def details(self) -> dict[str, Any]:
        """What a result row keeps of it."""
        values = asdict(self)
        return {"gflops": values.pop("gflops"), "images_per_s": values.pop("images_per_s"), "cost": values}


def measure_cost(backbone: Backbone, *, batch_size: int, precision: str = "auto", min_s: float = 1.0) -> Cost:
    """Count and time a backbone at the image size of its preprocessing.

    Args:
        backbone: on the device to measure on.
        batch_size: images in a timed forward pass.
        precision: `auto`, `fp32`, `bf16` or `fp16` of the timed forward pass.
        min_s: how long to repeat it at least.
    """
    resolved = resolve_precision(precision, backbone.device)
    return Cost(
        gflops=round(num_flops(backbone) / 1e9, 4),
        images_per_s=round(images_per_s(backbone, batch_size=batch_size, precision=resolved, min_s=min_s), 1),
        image_px=backbone.preprocess.image_px,
        batch_size=batch_size,
        precision=resolved,
    )


@torch.inference_mode()
def num_flops(backbone: Backbone) -> int:
    """Count the floating point operations of one image: 2 for each multiply-add.

    Matrix products, convolutions and attention count; sums, norms, activations and pooling do not, which is usual and
    leaves out about a hundredth of a Vision Transformer.
    """
    pixels = _pixels(backbone, 1)
    with _counted_attention(), FlopCounterMode(display=False) as counter:
        backbone.forward(pixels)
    return int(counter.get_total_flops())


@torch.inference_mode()
def images_per_s(backbone: Backbone, *, batch_size: int, precision: str = "auto", min_s: float = 1.0) -> float:
    """Time the forward pass without reading, cropping and copying images.

    After one pass to warm up it is repeated at least 3 times and for at least min_s; the median counts.

    Args:
        backbone: on the device to measure on.
        batch_size: images in a pass.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        min_s: the least time of all repeats together.
    """
    pixels, device = _pixels(backbone, batch_size), backbone.device
    dtype = _NARROW.get(resolve_precision(precision, device))
    cast: AbstractContextManager[Any] = nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
    seconds: list[float] = []
    with cast:
        _timed(backbone, pixels)
        while len(seconds) < _LEAST_REPEATS or sum(seconds) < min_s:
            seconds.append(_timed(backbone, pixels))
    return batch_size / statistics.median(seconds)


def _timed(backbone: Backbone, pixels: Tensor) -> float:
    _wait(pixels.device)
    start = time.perf_counter()
    backbone.forward(pixels)
    _wait(pixels.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Let the device finish: its kernels run after the call that started them has returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _pixels(backbone: Backbone, num: int) -> Tensor:
    """(num, 3, side, side) normalised grey."""
    side = backbone.preprocess.image_px
    grey = torch.full((num, 3, side, side), 127, dtype=torch.uint8, device=backbone.device)
    return backbone.preprocess.normalise(grey)


@contextmanager
def _counted_attention() -> Iterator[None]:
    """Make attention two matrix products: the counter knows neither the CPU's fused kernel nor the fast path of nn."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
