"""Multi-crop: image → boxes and flips → pixels of every view."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchssl.config import ViewsConfig
from patchssl.draws import uniforms
from patchssl.geometry import NUM_BOX_UNIFORMS, draw_boxes
from patchssl.structs import Boxes, SampleKeys, ViewGroup


class MultiCrop:
    """Cuts the views of a batch out of its images; called in loader processes.

    Views are numbered, global ones first; the box and flip of view v of a sample follow from
    (seed, epoch, sample index, v) and the size of the image.
    """

    def __init__(self, views: ViewsConfig, seed: int) -> None:
        """Keep the settings."""
        self.views, self.seed = views, seed

    def __call__(self, images: list[Image.Image], keys: SampleKeys) -> list[ViewGroup]:
        """Make the views of B images.

        Returns:
            The global and, unless there are none, the local views: pixels (B, V, 3, side, side) uint8.
        """
        sizes = torch.tensor([(image.height, image.width) for image in images])  # (B, 2)
        return [ViewGroup(self._pixels(images, boxes, side), boxes) for side, boxes in self.boxes(sizes, keys)]

    def boxes(self, sizes: Tensor, keys: SampleKeys) -> list[tuple[int, Boxes]]:
        """Draw where the views of images lie.

        Args:
            sizes: (B, 2) height and width, px.
            keys: the B samples.

        Returns:
            For the global and, unless there are none, the local views: their side in px, and their boxes (B, V).
        """
        views = self.views
        groups = [(views.global_size, self._boxes(sizes, keys, 0, views.num_global, views.global_scale))]
        if views.num_local:
            local = self._boxes(sizes, keys, views.num_global, views.num_local, views.local_scale)
            groups.append((views.local_size, local))
        return groups

    def _boxes(
        self, sizes: Tensor, keys: SampleKeys, first_view: int, num_views: int, scale: tuple[float, float]
    ) -> Boxes:
        drawn_for = keys.first() if self.views.shared_geometry else keys
        numbers = torch.stack(
            [
                uniforms(self.seed, drawn_for, first_view + view, NUM_BOX_UNIFORMS + 1).expand(len(keys), -1)
                for view in range(num_views)
            ],
            dim=1,
        )  # (B, V, numbers)
        height, width = sizes[:, None, 0].expand(-1, num_views), sizes[:, None, 1].expand(-1, num_views)
        corners = draw_boxes(numbers[..., :-1], height, width, scale=scale, ratio=self.views.ratio)
        return Boxes(corners, numbers[..., -1] < self.views.flip_probability)

    @staticmethod
    def _pixels(images: list[Image.Image], boxes: Boxes, side: int) -> Tensor:
        """(B, V, 3, side, side) uint8."""
        pixels = np.empty((*boxes.flipped.shape, side, side, 3), dtype=np.uint8)
        for row, image in enumerate(images):
            for view, (corners, flip) in enumerate(
                zip(boxes.corners[row].tolist(), boxes.flipped[row].tolist(), strict=True)
            ):
                pixels[row, view] = crop(image, corners, side, flip=flip)
        # (B, V, side, side, 3) -> (B, V, 3, side, side)
        return torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).contiguous()


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
