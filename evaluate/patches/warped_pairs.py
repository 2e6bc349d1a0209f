"""Images → views of known geometry, made in loader processes.

A box is resampled once, with Pillow's antialiased bicubic filter. A tilted view takes two steps: its bounding box is
resized, antialiased, to the resolution that the view has on average, and the view read from that bicubically. Within
the view the resolution is hardly ever less than half or more than twice that average, which shows neither as blur nor
as aliasing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ImageSource
from patchssl.draws import uniforms
from patchssl.photometric import PhotometricSettings, augment
from patchssl.structs import SampleKeys, as_float
from patchssl.warps import KINDS, NUM_PAIR_UNIFORMS, apply, draw_pair

#: How a view is recoloured: more than any view of pretraining, and always.
RECOLOURING = PhotometricSettings(
    jitter_probability=1.0,
    brightness=0.6,
    contrast=0.6,
    saturation=0.6,
    hue=0.2,
    greyscale_probability=0.2,
    solarise_probability=0.2,
    blur_probability=0.0,
)
#: The least shorter side of an image: its views would have no content.
LEAST_PX = 16

# Apart from the streams of pretraining and of linear probes.
_GEOMETRY, _COLOUR, _NOISE = 1 << 21, (1 << 21) + 1, (1 << 21) + 2


@dataclass(frozen=True, slots=True)
class WarpedViews:
    """Views of B images, the first view first, then one of each kind.

    Attributes:
        pixels: (B, V, 3, side, side) uint8.
        matrices: (B, V, 3, 3) float64, view pixels to image pixels.
    """

    pixels: Tensor
    matrices: Tensor

    def pin_memory(self) -> "WarpedViews":
        """The same with pixels in page-locked memory, as a data loader asks for before a copy to a GPU."""
        return WarpedViews(self.pixels.pin_memory(), self.matrices)


class WarpedPairs:
    """The views of every image, several times over, step by step.

    Geometry and colours follow from (seed, image, number of the pair) and the image's size; those of a kind do not
    depend on which other kinds there are. An image that cannot be read, or is too small, is left out.
    """

    def __init__(
        self,
        source: ImageSource,
        images: NDArray[np.int64],
        kinds: Sequence[str],
        *,
        side: int,
        num_pairs: int,
        pairs_per_step: int,
        seed: int,
        noise: float = 0.0,
    ) -> None:
        """Keep what is needed to make any step.

        Args:
            source: M images.
            images: places in the source of those to use.
            kinds: keys of `patchssl.warps.KINDS`.
            side: of the views, px.
            num_pairs: how many first views each image has.
            pairs_per_step: first views in a step.
            seed: of geometry, colours and noise.
            noise: standard deviation of what is added to every value of every view by itself, of the range of values.
        """
        self.source, self.kinds, self.side, self.seed = source, tuple(kinds), side, seed
        self.images, self.num_pairs, self.pairs_per_step, self.noise = images, num_pairs, pairs_per_step, noise

    def __len__(self) -> int:
        return -(-len(self.images) * self.num_pairs // self.pairs_per_step)

    def units_of(self, step: int) -> list[tuple[int, int]]:
        """Place in the source and number of each pair of a step.

        They come image by image, so that one with several pairs is seldom read more than once.
        """
        end = min((step + 1) * self.pairs_per_step, len(self.images) * self.num_pairs)
        units = (divmod(number, self.num_pairs) for number in range(step * self.pairs_per_step, end))
        return [(int(self.images[place]), pair) for place, pair in units]

    def __getitem__(self, step: int) -> tuple[WarpedViews, SampleKeys, list[UnreadableImage]]:
        """The views of a step's readable images, their keys (`epoch` is the number of the pair), and what is not."""
        units = self.units_of(step)
        indices, numbers = torch.tensor(units, dtype=torch.int64).unbind(1)
        keys = SampleKeys(numbers, indices)
        drawn = uniforms(self.seed, keys, _GEOMETRY, NUM_PAIR_UNIFORMS).tolist()
        pixels = np.empty((len(units), 1 + len(self.kinds), self.side, self.side, 3), dtype=np.uint8)
        matrices = np.empty((*pixels.shape[:2], 3, 3))
        kept, bad = list[int](), list[UnreadableImage]()
        # One image after the other, since some are large.
        for index, rows in groupby(range(len(units)), lambda row: units[row][0]):
            try:
                image = self._read(index)
            except UnreadableImage as error:
                bad.append(error)
                continue
            for row in rows:
                self._make(image, drawn[row], pixels[row], matrices[row])
                kept.append(row)
        # (B, V, side, side, 3) -> (B, V, 3, side, side)
        views = torch.from_numpy(pixels[kept]).permute(0, 1, 4, 2, 3).contiguous()
        self._recolour(views, keys[kept])
        if self.noise:
            self._disturb(views, keys[kept])
        return WarpedViews(views, torch.from_numpy(matrices[kept])), keys[kept], bad

    def _read(self, index: int) -> Image.Image:
        image = self.source.read(index)
        if min(image.size) < LEAST_PX:
            raise UnreadableImage(
                str(self.source.ids[index]),
                f"has {image.width} x {image.height} px; for views of parts of it at least {LEAST_PX} are needed",
            )
        return image

    def _make(
        self, image: Image.Image, drawn: list[float], pixels: NDArray[np.uint8], matrices: NDArray[np.float64]
    ) -> None:
        """Fill in the views (V, side, side, 3) of an image and their matrices (V, 3, 3)."""
        chosen = [KINDS[name] for name in self.kinds]
        matrices[:] = draw_pair(drawn, chosen, height_px=image.height, width_px=image.width, view_px=self.side)
        for view, matrix in enumerate(matrices):
            pixels[view] = render(image, matrix, self.side)

    def _recolour(self, views: Tensor, keys: SampleKeys) -> None:
        """Change the colours of the views (B, V, 3, side, side) uint8 of some kinds, in place."""
        for view, name in enumerate(self.kinds, start=1):
            if KINDS[name].recolour and len(keys):
                changed = augment(as_float(views[:, view]), RECOLOURING, seed=self.seed, keys=keys, stream=_COLOUR)
                views[:, view] = changed.mul_(255).round_().to(torch.uint8)

    def _disturb(self, views: Tensor, keys: SampleKeys) -> None:
        """Add noise to the views (B, V, 3, side, side) uint8, to each its own whatever the others are, in place."""
        names = list(KINDS)
        numbers = [0, *(1 + names.index(name) for name in self.kinds)]
        for row, (index, pair) in enumerate(zip(keys.index.tolist(), keys.epoch.tolist(), strict=True)):
            for view, number in enumerate(numbers):
                generator = np.random.default_rng([self.seed, _NOISE, index, pair, number])
                added = generator.normal(scale=255 * self.noise, size=views.shape[2:])
                disturbed = np.rint(views[row, view].numpy() + added).clip(0, 255).astype(np.uint8)
                views[row, view] = torch.from_numpy(disturbed)


def render(image: Image.Image, matrix: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    """Show what a view shows.

    Args:
        image: RGB.
        matrix: (3, 3) view pixels to image pixels; the view lies inside the image.
        side: of the view, px.

    Returns:
        (side, side, 3) uint8.
    """
    corners = apply(matrix, np.array([[0.0, 0], [side, 0], [side, side], [0, side]]))  # (4, 2)
    # Pillow refuses a box that passes the border by a rounding error.
    low, high = corners.min(axis=0).clip(0, image.size), corners.max(axis=0).clip(0, image.size)
    box = (*low.tolist(), *high.tolist())
    if not (matrix[[0, 1, 2, 2], [1, 0, 0, 1]]).any():
        upright = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
        return upright[:, ::-1] if matrix[0, 0] < 0 else upright
    density = side / math.sqrt(_area(corners))
    width, height = (max(1, math.ceil(density * length)) for length in (high - low).tolist())
    resized = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    scale = np.array([width, height]) / (high - low)
    to_resized = np.array([[scale[0], 0, -scale[0] * low[0]], [0, scale[1], -scale[1] * low[1]], [0, 0, 1]]) @ matrix
    numbers = (to_resized / to_resized[2, 2]).ravel()[:8].tolist()
    tilted = resized.transform((side, side), Image.Transform.PERSPECTIVE, numbers, Image.Resampling.BICUBIC)
    return np.asarray(tilted)


def _area(corners: NDArray[np.float64]) -> float:
    """Area of a polygon with corners (M, 2)."""
    x, y = corners.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
