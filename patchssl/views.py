"""Multi-crop: which boxes of images the views show, and at what size images are decoded for them."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchssl.config import ViewsConfig
from patchssl.draws import uniforms
from patchssl.geometry import NUM_BOX_UNIFORMS, draw_boxes
from patchssl.reductions import LEAST_OVERSAMPLING, REDUCTIONS
from patchssl.structs import Boxes, CropPlan, SampleKeys

# Shorter boxes keep their fractions of a pixel, which would distort them (a local view of a CIFAR image is some 10 px
# wide); for longer ones, as in torchvision's random resized crop, whole pixels are near enough and quicker to cut out.
_LEAST_WHOLE_PX = 32


class MultiCrop:
    """Draws which views of a batch show what.

    Views are numbered, global ones first; the box and flip of view v of a sample follow from
    (seed, epoch, sample index, v) and the size of the image.
    """

    def __init__(self, views: ViewsConfig, seed: int) -> None:
        """Keep the settings."""
        self.views, self.seed = views, seed

    def plan(self, sizes: Tensor, keys: SampleKeys, reducible: Tensor | None = None) -> CropPlan:
        """Draw where the views of images lie, and say how small the images may be decoded.

        An image is reduced as far as every view of it still has two decoded pixels for each of its own. Boxes of 32 or
        more decoded pixels each way have their edges between whole ones.

        Args:
            sizes: (B, 2) height and width of the images as they are stored, px.
            keys: the B samples.
            reducible: (B,) bool, which images can be decoded smaller; None: none of them.
        """
        views = self.views
        sides = [views.global_size]
        drawn = [self._boxes(sizes, keys, 0, views.num_global, views.global_scale)]
        if views.num_local:
            sides.append(views.local_size)
            drawn.append(self._boxes(sizes, keys, views.num_global, views.num_local, views.local_scale))
        reductions = _reductions(
            sides, drawn, torch.zeros(len(sizes), dtype=torch.bool) if reducible is None else reducible
        )
        return CropPlan(tuple(sides), tuple(_on_pixels(boxes, sizes, reductions) for boxes in drawn), reductions)

    def _boxes(
        self, sizes: Tensor, keys: SampleKeys, first_view: int, num_views: int, scale: tuple[float, float]
    ) -> Boxes:
        drawn_for = keys.first() if self.views.shared_geometry else keys
        num_drawn = len(drawn_for)
        # All views at once: a draw costs as much as what it draws.
        repeated = SampleKeys(drawn_for.epoch.repeat(num_views), drawn_for.index.repeat(num_views))
        streams = torch.arange(first_view, first_view + num_views).repeat_interleave(num_drawn)
        numbers = uniforms(self.seed, repeated, streams, NUM_BOX_UNIFORMS + 1).unflatten(0, (num_views, num_drawn))
        numbers = numbers.transpose(0, 1).expand(len(keys), -1, -1)  # (B, V, numbers)
        height, width = sizes[:, None, 0].expand(-1, num_views), sizes[:, None, 1].expand(-1, num_views)
        corners = draw_boxes(numbers[..., :-1], height, width, scale=scale, ratio=self.views.ratio)
        return Boxes(corners, numbers[..., -1] < self.views.flip_probability)


def _reductions(sides: list[int], drawn: list[Boxes], reducible: Tensor) -> Tensor:
    """(B,) int64, the largest of REDUCTIONS that leaves enough of the least box of each image."""
    room = torch.stack(
        [boxes.corners[..., 2:].amin((1, 2)) / side for side, boxes in zip(sides, drawn, strict=True)]
    ).amin(0)  # (B,)
    steps = torch.tensor(REDUCTIONS)
    fitting = (room[:, None] >= steps * LEAST_OVERSAMPLING).sum(1).clamp(min=1)
    return torch.where(reducible, steps[fitting - 1], 1)


def _on_pixels(boxes: Boxes, sizes: Tensor, reductions: Tensor) -> Boxes:
    """Move the edges of large boxes between decoded pixels, at most half a one."""
    unit = reductions[:, None, None].double()
    first, last = boxes.corners[..., :2], boxes.corners[..., :2] + boxes.corners[..., 2:]
    ends = (sizes[:, None] / unit).floor()
    first, last = ((edge / unit).round().minimum(ends) * unit for edge in (first, last))
    whole = torch.cat((first, last - first), dim=-1)
    large = (boxes.corners[..., 2:] >= _LEAST_WHOLE_PX * unit).all(-1, keepdim=True)
    return Boxes(torch.where(large, whole, boxes.corners), boxes.flipped)


def crop(
    image: Image.Image,
    box: list[float],
    side: int,
    *,
    flip: bool,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Resample a box of an image to side x side with one of Pillow's antialiased filters.

    Args:
        image: RGB.
        box: top, left, height, width in pixels, fractions meant.
        side: of the result, px.
        flip: mirror left to right.
        resample: the filter.

    Returns:
        (side, side, 3) uint8.
    """
    top, left, height, width = box
    # Pillow takes edges in single precision, in which a sum that passes the border by a rounding error does not.
    edges = (left, top, left + width, top + height)
    view = np.asarray(image.resize((side, side), resample, box=edges))
    return view[:, ::-1] if flip else view
