"""The grid of pixel centres on which everything is drawn, and the way from floats to bytes."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Canvas:
    """Pixel centres in a unit that does not depend on the resolution: half of the image's short side.

    Attributes:
        x: (1, W) from left to right, 0 in the middle.
        y: (H, 1) from top to bottom, 0 in the middle.
        pixel: a pixel's side.
    """

    x: FloatArray
    y: FloatArray
    pixel: float

    @property
    def half_width(self) -> float:
        """From the middle to the right edge."""
        return float(self.x.shape[1] * self.pixel / 2)

    @property
    def half_height(self) -> float:
        """From the middle to the bottom edge."""
        return float(self.y.shape[0] * self.pixel / 2)


@lru_cache(maxsize=32)
def canvas(height_px: int, width_px: int) -> Canvas:
    """Lay out the pixel centres of an image of this size."""
    pixel = 2 / min(height_px, width_px)
    x = (np.arange(width_px, dtype=np.float64) - (width_px - 1) / 2) * pixel
    y = (np.arange(height_px, dtype=np.float64) - (height_px - 1) / 2) * pixel
    return Canvas(x[None, :], y[:, None], pixel)


def to_bytes(pixels: FloatArray) -> Pixels:
    """Quantise colours in [0, 1] (clipped) to 0 to 255, halves upwards.

    The colours are float64, so values that differ by rounding errors of other platforms (1e-15) change a byte about
    once in 1e12 pixels.
    """
    return np.floor(np.clip(pixels, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
