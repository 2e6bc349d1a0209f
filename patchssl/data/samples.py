"""Which images a training step takes, and how they are read."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from patchssl.data.at_work import note
from patchssl.data.decode import OpenedImage, UnreadableImage, open_image
from patchssl.data.images import StoredSource
from patchssl.data.order import epoch_order, tell_smaller_buffer
from patchssl.errors import DataError
from patchssl.stage_clock import StageClock
from patchssl.structs import SampleKeys


@dataclass(frozen=True)
class Share:
    """Which images of each batch a process takes.

    Each of the parts in which a batch is taken is shared out evenly and in order, so that a part holds the same images
    whatever the number of processes.

    Attributes:
        rank: of the process.
        num_processes: which share a batch.
        num_parts: in which each takes its share, one after another.
    """

    rank: int = 0
    num_processes: int = 1
    num_parts: int = 1

    def of(self, batch_size: int) -> list[int]:
        """The places in a batch, part after part; num_processes * num_parts divides the batch size."""
        part, own = batch_size // self.num_parts, batch_size // (self.num_parts * self.num_processes)
        starts = (number * part + self.rank * own for number in range(self.num_parts))
        return [place for start in starts for place in range(start, start + own)]


#: Of a process that takes whole batches.
ALONE = Share()


class Samples:
    """The samples of every step: the source is gone through in an order of each epoch, batch after batch."""

    def __init__(
        self, source: StoredSource, *, batch_size: int, seed: int, share: Share, shuffle_buffer: int | None = None
    ) -> None:
        """Keep what decides them; as for TrainingBatches."""
        tell_smaller_buffer(source, shuffle_buffer)
        self._source, self._seed, self._shuffle_buffer = source, seed, shuffle_buffer
        self._batch_size, self._places = batch_size, share.of(batch_size)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def of_step(self, step: int) -> SampleKeys:
        """The keys of this process's share of the batch of a step."""
        start = step * self._batch_size
        first, *samples = (self._sample(start + place) for place in (0, *self._places))
        epochs, indices = zip(*samples, strict=True)
        return SampleKeys(torch.tensor(epochs), torch.tensor(indices), first_of_batch=first)

    def _sample(self, number: int) -> tuple[int, int]:
        """Epoch and index in the source of a sample, numbered from the start of the training."""
        epoch, position = divmod(number, len(self._source))
        return epoch, int(self._order_of(epoch)[position])

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            order = epoch_order(
                self._source,
                seed=self._seed,
                epoch=epoch,
                shuffle_buffer=self._shuffle_buffer,
                batch_size=self._batch_size,
            )
            self._order = epoch, order
        return self._order[1]


@dataclass(frozen=True, slots=True)
class Opened:
    """An image that has been read and not decoded.

    Attributes:
        start: the image of the source that was asked for.
        offset: how many places further on it stands.
        image: its file, or its pixels (h, w, 3) uint8.
    """

    start: int
    offset: int
    image: OpenedImage | NDArray[np.uint8]

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.size_px if isinstance(self.image, OpenedImage) else self.image.shape[:2]

    @property
    def is_reducible(self) -> bool:
        """Whether a smaller picture can be decoded for less work."""
        return isinstance(self.image, OpenedImage) and self.image.is_reducible


class Reader:
    """Reads the images of a batch; one that cannot be read gives way to the next one of the source that can."""

    def __init__(self, source: StoredSource, clock: StageClock) -> None:
        """Keep the source and the clock that is to tell reading from decoding."""
        self._source, self._clock = source, clock
        self.bad: list[UnreadableImage] = []

    def first(self, start: int) -> Opened:
        """Read an image, or the next after it.

        Raises:
            DataError: no image of the source can be read.
        """
        return self._opened(start, 0)

    def again(self, opened: Opened) -> Opened:
        """The same once more: a file is decoded only once."""
        return self._opened(opened.start, opened.offset)

    def next_after(self, opened: Opened) -> Opened:
        """The next one that can be read; raises DataError where that is none."""
        return self._opened(opened.start, opened.offset + 1)

    def decoded(self, opened: Opened, reduction: int) -> NDArray[np.uint8] | None:
        """Pixels (h, w, 3); None, and a reason among the bad ones, where they are damaged."""
        if not isinstance(opened.image, OpenedImage):
            return opened.image
        try:
            with self._clock.stage("decoding"):
                return opened.image.pixels(reduction)
        except UnreadableImage as error:
            self.bad.append(error)
            return None

    def _opened(self, start: int, offset: int) -> Opened:
        num = len(self._source)
        for further in range(offset, num):
            index = (start + further) % num
            try:
                note(f"read {self._source.where(index)}")
                with self._clock.stage("reading"):
                    stored = self._source.fetch(index)
                if not isinstance(stored, bytes):
                    return Opened(start, further, stored)
                with self._clock.stage("decoding"):
                    image = open_image(stored, self._source.where(index), apply_exif=self._source.apply_exif)
                    image.size_px  # noqa: B018 - a damaged EXIF tag tells itself here
                return Opened(start, further, image)
            except UnreadableImage as error:
                self.bad.append(error)
        raise DataError(f"none of the {num} images of {self._source.location} can be read; the first: {self.bad[0]}")
