"""Batches that depend on the seed and the step alone."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from patchssl.data.at_work import note
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import StoredSource
from patchssl.data.made_ahead import made_ahead
from patchssl.data.samples import ALONE, Opened, Reader, Samples, Share
from patchssl.errors import DataError
from patchssl.stage_clock import StageClock
from patchssl.structs import CropPlan, SampleKeys

Made = TypeVar("Made")
MadeFor = TypeVar("MadeFor", covariant=True)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[MadeFor]):
    """What a process takes of a batch.

    Attributes:
        made: of its images.
        keys: of its samples.
        bad: what could not be read.
        seconds: what making it took, by stage: reading, decoding, augmenting (cutting views out), other.
    """

    made: MadeFor
    keys: SampleKeys
    bad: list[UnreadableImage]
    seconds: dict[str, float]

    def pin_memory(self) -> "Loaded[MadeFor]":
        """The same in page-locked memory, as a data loader asks for before a copy to a GPU."""
        made: Any = self.made
        pinned: Any = [part.pin_memory() for part in made] if isinstance(made, list) else made.pin_memory()
        return replace(self, made=pinned)


class Division(Protocol[MadeFor]):
    """What loader processes make of images."""

    def plan(self, sizes: Tensor, keys: SampleKeys, reducible: Tensor) -> CropPlan:
        """Say which parts of images (B, 2) high and wide are needed, and at what reduction they may be decoded."""
        ...

    def make(self, images: list[NDArray[np.uint8]], plan: CropPlan) -> MadeFor:
        """Make what is handed on of the images (h, w, 3) as they were decoded."""
        ...


class TrainingBatches(Dataset[Loaded[Made]], Generic[Made]):
    """The batch of every training step.

    Step after step the source is gone through in an order shuffled anew for each epoch; a batch may begin in one
    epoch and end in the next, so no image is left out and a source may be smaller than a batch. An unreadable image
    is replaced by the next one of the source that can be read.
    """

    def __init__(
        self,
        source: StoredSource,
        division: Division[Made],
        *,
        batch_size: int,
        num_steps: int,
        seed: int,
        share: Share = ALONE,
        shuffle_buffer: int | None = None,
    ) -> None:
        """Keep what is needed to make any batch.

        Args:
            source: the images.
            division: turns the images of a batch into what is handed on.
            batch_size: images in a batch, of all processes together.
            num_steps: steps of the whole training.
            seed: of the order.
            share: what this process takes of it.
            shuffle_buffer: images of a source in shards that are shuffled among each other; None: all.
        """
        self.source, self.division = source, division
        self.samples = Samples(source, batch_size=batch_size, seed=seed, share=share, shuffle_buffer=shuffle_buffer)
        self.num_steps = num_steps

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> Loaded[Made]:
        """This process's share of the batch of a step."""
        clock = StageClock()
        keys, reader = self.samples.of_step(step), Reader(self.source, clock)
        rows = [reader.first(index) for index in keys.index.tolist()]
        images, plan = self._decoded(reader, rows, keys)
        note(f"made the views of step {step}")
        with clock.stage("augmenting"):
            made = self.division.make(images, plan)
        return Loaded(made, keys, reader.bad, clock.read())

    def _decoded(
        self, reader: Reader, rows: list[Opened], keys: SampleKeys
    ) -> tuple[list[NDArray[np.uint8]], CropPlan]:
        """Decode images as far as their views need; where one is damaged the next takes its place, and its size."""
        while True:
            sizes = torch.tensor([opened.size_px for opened in rows])
            plan = self.division.plan(sizes, keys, torch.tensor([opened.is_reducible for opened in rows]))
            images = [
                reader.decoded(opened, reduction)
                for opened, reduction in zip(rows, plan.reductions.tolist(), strict=True)
            ]
            whole = [image for image in images if image is not None]
            if len(whole) == len(images):
                return whole, plan
            rows = [
                reader.again(opened) if image is not None else reader.next_after(opened)
                for opened, image in zip(rows, images, strict=True)
            ]


class Steps(Protocol[MadeFor]):
    """What is made for each step of a training, in any process and any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> MadeFor: ...


def iterate(batches: Steps[Made], *, first_step: int, workers: int, pin_memory: bool) -> Generator[Made, None, None]:
    """The batches from first_step to the last, made ahead of time by worker processes, which are started here.

    Args:
        batches: the batch of every step.
        first_step: where to begin.
        workers: processes; 0 makes them in this one.
        pin_memory: for copies to a GPU that overlap computing.

    Raises:
        DataError: no image of the source can be read.
        LoaderError: a process died, or an error came that nobody foresaw.
    """
    places = range(first_step, len(batches))
    return made_ahead(batches, places, workers=workers, prefetch=4, pin_memory=pin_memory)


class BadImages:
    """Counts unreadable images and stops when they are too many."""

    def __init__(self, num_images: int, max_fraction: float) -> None:
        """Allow max_fraction of num_images."""
        self.num_images, self.max_fraction = num_images, max_fraction
        self.reasons: dict[str, str] = {}

    def add(self, bad: list[UnreadableImage]) -> list[UnreadableImage]:
        """Take note of images and return those not seen before.

        Raises:
            DataError: more than the allowed fraction of all images is unreadable.
        """
        # One may be met twice at a time, by several processes or in place of several others.
        new = list({error.path: error for error in bad if error.path not in self.reasons}.values())
        self.reasons.update({error.path: error.reason for error in new})
        if len(self.reasons) > self.max_fraction * self.num_images:
            first = "; ".join(f"{path}: {reason}" for path, reason in list(self.reasons.items())[:3])
            raise DataError(
                f"{len(self.reasons)} of {self.num_images} images are unreadable, more than the allowed "
                f"{self.max_fraction:.1%} (--max-bad-fraction); for instance {first}"
            )
        return new
