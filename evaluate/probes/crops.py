"""Images → randomly resized crops, mirrored half of the time, epoch after epoch: what a linear probe is trained on."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ImageSource
from patchssl.draws import uniforms
from patchssl.geometry import NUM_BOX_UNIFORMS, draw_boxes, draw_flips
from patchssl.structs import SampleKeys
from patchssl.views import crop

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)

# Apart from those of pretraining, whose views and photometric parameters count up from 0 and from 1 << 16.
_STREAM = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a batch, small enough for one forward pass.

    Attributes:
        epoch: from 0.
        first: place of its first image in the order of the epoch.
        end: place behind its last image.
        ends_batch: whether it is the last of its batch.
        ends_epoch: whether it is the last of its epoch.
    """

    epoch: int
    first: int
    end: int
    ends_batch: bool
    ends_epoch: bool


class AugmentedCrops:
    """The augmented images of every epoch, piece by piece; made in loader processes.

    Every epoch has an order of its own and its last batch may be smaller. The order follows from (seed, epoch), the box
    and flip of an image from (seed, epoch, index) and its size; an image that cannot be read is left out.
    """

    def __init__(
        self, source: ImageSource, *, side: int, batch_size: int, piece_size: int, num_epochs: int, seed: int
    ) -> None:
        """Keep what is needed to make any piece.

        Args:
            source: M images.
            side: of the crops, px.
            batch_size: images in a batch.
            piece_size: images in a piece.
            num_epochs: how often the images are gone through.
            seed: of order, boxes and flips.
        """
        self.source, self.side, self.seed, self.num_epochs = source, side, seed, num_epochs
        self.bounds = [
            (first, min(first + piece_size, batch_first + batch_size, len(source)))
            for batch_first in range(0, len(source), batch_size)
            for first in range(batch_first, min(batch_first + batch_size, len(source)), piece_size)
        ]
        self.batch_size = batch_size
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return self.num_epochs * len(self.bounds)

    def piece(self, step: int) -> Piece:
        """Which images a step holds."""
        epoch, place = divmod(step, len(self.bounds))
        first, end = self.bounds[place]
        ends_epoch = end == len(self.source)
        return Piece(epoch, first, end, ends_epoch or end % self.batch_size == 0, ends_epoch)

    def __getitem__(self, step: int) -> tuple[Tensor, SampleKeys, list[UnreadableImage]]:
        """Crops (b, 3, side, side) uint8 of the readable images of a piece, their keys, and what cannot be read."""
        piece = self.piece(step)
        images, kept, bad = list[Image.Image](), list[int](), list[UnreadableImage]()
        for index in self._epoch_order(piece.epoch)[piece.first : piece.end].tolist():
            try:
                images.append(self.source.read(index))
                kept.append(index)
            except UnreadableImage as error:
                bad.append(error)
        keys = SampleKeys(torch.full((len(kept),), piece.epoch), torch.tensor(kept, dtype=torch.int64))
        return self._crop(images, keys), keys, bad

    def _crop(self, images: list[Image.Image], keys: SampleKeys) -> Tensor:
        pixels = np.empty((len(images), self.side, self.side, 3), dtype=np.uint8)
        if images:
            numbers = uniforms(self.seed, keys, _STREAM, NUM_BOX_UNIFORMS + 1)  # (b, numbers)
            sizes = torch.tensor([(image.height, image.width) for image in images])  # (b, 2)
            boxes = draw_boxes(numbers[:, :-1], sizes[:, 0], sizes[:, 1], scale=SCALE, ratio=RATIO).tolist()
            flips = draw_flips(numbers[:, -1]).tolist()
            for row, (image, box, flip) in enumerate(zip(images, boxes, flips, strict=True)):
                pixels[row] = crop(image, box, self.side, flip=flip, resample=Image.Resampling.BILINEAR)
        # (b, side, side, 3) -> (b, 3, side, side)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.source))
        return self._order[1]
