"""How images become views on the training device: who does what, and the batches of every step."""

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from patchssl.available_memory import device_memory
from patchssl.config import Config
from patchssl.cutting import ViewsByWorkers
from patchssl.data.images import StoredSource
from patchssl.data.loader import Loaded, Steps, TrainingBatches, iterate
from patchssl.data.resident import MOST_BYTES, Probe, Resident, TooLargeError, load_resident, probe
from patchssl.data.samples import Samples, Share
from patchssl.decoded_images import ImagesByWorkers, cut_decoded
from patchssl.environment import usable_cores
from patchssl.launch import launched
from patchssl.resampling import resample
from patchssl.structs import CropPlan, SampleKeys, ViewGroup
from patchssl.views import MultiCrop

logger = logging.getLogger(__name__)

# Of the device's, that images may take where they are to be kept there.
_MOST_OF_MEMORY = 0.5
# Images with so many times the pixels of their views are cut where they are decoded.
_MOST_HANDED_ON = 4

Division = Literal["views", "images", "resident"]


@dataclass(frozen=True, slots=True)
class Feed:
    """The way from a source to the views of every step.

    Attributes:
        division: of labour, as in data.division.
        batches: what loader processes make for each step.
        workers: so many of them; 0 where the main process does it.
        move: what was made, to the training device.
        cut: the views of that, on the training device, uint8.
    """

    division: Division
    batches: Steps[Loaded[Any]]
    workers: int
    move: Callable[[Any], Any]
    cut: Callable[[Any], list[ViewGroup]]

    def iterate(self, *, first_step: int, pin_memory: bool = False) -> Generator[Loaded[Any], None, None]:
        """What is made for each step, ahead of time by loader processes, which are started here.

        Args:
            first_step: where to begin.
            pin_memory: for copies to a GPU that overlap computing.
        """
        pin = pin_memory and self.division != "resident"
        return iterate(self.batches, first_step=first_step, workers=self.workers, pin_memory=pin)


def settle_division(config: Config, source: StoredSource, device: str) -> Division:
    """Who cuts the views out, where the configuration leaves it open.

    Small images are kept on the training device. Otherwise a device beside the CPU cuts them, whose loader processes
    then keep pace with it sooner; but not photographs so large that handing them on would cost more than cutting. On
    the CPU itself views one by one cost less than whole batches of matrices.

    Args:
        config: of the run.
        source: the images, of which a few are looked at.
        device: cpu, cuda or mps, with or without a number.
    """
    if config.data.division != "auto":
        return config.data.division
    probed = probe(source)
    return "resident" if probed.is_small() else _by_workers(config, probed, device)


def _by_workers(config: Config, probed: Probe, device: str) -> Division:
    if device.startswith("cpu") or not len(probed.sizes):
        return "views"
    keys = SampleKeys(torch.zeros(len(probed.sizes), dtype=torch.int64), torch.arange(len(probed.sizes)))
    plan = MultiCrop(config.views, config.train.seed).plan(probed.sizes, keys, probed.reducible)
    of_images = (probed.sizes.prod(1) / plan.reductions**2).mean()
    of_views = sum(boxes.flipped.shape[1] * side**2 for boxes, side in zip(plan.boxes, plan.sides, strict=True))
    return "images" if of_images <= _MOST_HANDED_ON * of_views else "views"


def feed(
    config: Config, source: StoredSource, *, device: torch.device, num_steps: int, share: Share, workers: int
) -> Feed:
    """Set up the division of labour that the configuration asks for.

    Args:
        config: of the run.
        source: the images; those that are kept on the device are decoded here.
        device: that trains.
        num_steps: of the whole training.
        share: what this process takes of each batch.
        workers: loader processes.

    Raises:
        DataError: no image can be read, or they would take too much memory where they are to be kept.
    """
    train = config.train
    crop, division = MultiCrop(config.views, train.seed), settle_division(config, source, device.type)
    if division == "resident":
        resident = _load(config, source, device, workers)
        if resident is not None:
            samples = Samples(
                source,
                batch_size=train.batch_size,
                seed=train.seed,
                share=share,
                shuffle_buffer=config.data.shuffle_buffer,
            )
            return _resident_feed(resident, ResidentBatches(resident, samples, crop, num_steps), device)
        division = _by_workers(config, probe(source), device.type)
    by_workers = ViewsByWorkers(crop) if division == "views" else ImagesByWorkers(crop)
    batches: TrainingBatches[Any] = TrainingBatches(
        source,
        by_workers,
        batch_size=train.batch_size,
        num_steps=num_steps,
        seed=train.seed,
        share=share,
        shuffle_buffer=config.data.shuffle_buffer,
    )
    if division == "views":
        return Feed(division, batches, workers, lambda views: [view.to(device) for view in views], lambda views: views)
    return Feed(division, batches, workers, lambda images: images.to(device), cut_decoded)


def _load(config: Config, source: StoredSource, device: torch.device, workers: int) -> Resident | None:
    """All images decoded; None where that was not asked for and they turn out to be too large."""
    asked_for = config.data.division == "resident"
    available = device_memory(device.type) if asked_for else None
    most_bytes = MOST_BYTES if available is None else round(_MOST_OF_MEMORY * available.num_bytes)
    # Nothing else goes on yet, so that all cores are free for it.
    launch = launched()
    num_cores = usable_cores() // (launch.local_size if launch else 1)
    logger.info("decoding %s images, which are kept on the device", f"{len(source):,}")
    try:
        return load_resident(source, workers=max(workers, num_cores) if workers else 0, most_bytes=most_bytes)
    except TooLargeError as error:
        if asked_for:
            raise
        logger.info("images are not kept decoded: %s", error)
        return None


def _resident_feed(resident: Resident, batches: "ResidentBatches", device: torch.device) -> Feed:
    """Batches are plans, and pixels are on the device already."""
    pixels = resident.pixels.to(device)

    def cut(made: tuple[Tensor, CropPlan]) -> list[ViewGroup]:
        rows, plan = made
        images = pixels[rows.to(device)]
        return [
            ViewGroup(resample(images, boxes, side), boxes) for side, boxes in zip(plan.sides, plan.boxes, strict=True)
        ]

    return Feed("resident", batches, 0, lambda made: made, cut)


class ResidentBatches:
    """The samples of every step, and where their views lie; pixels are elsewhere."""

    def __init__(self, resident: Resident, samples: Samples, crop: MultiCrop, num_steps: int) -> None:
        """Keep what decides them."""
        self._sizes, self._reducible, self._bad = resident.sizes, resident.reducible, list(resident.bad)
        self._samples, self._crop, self._num_steps = samples, crop, num_steps

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> Loaded[tuple[Tensor, CropPlan]]:
        """Places in the source, and their plan; the first that is asked for tells what cannot be read."""
        keys = self._samples.of_step(step)
        plan = self._crop.plan(self._sizes[keys.index], keys, self._reducible[keys.index])
        bad, self._bad = self._bad, []
        return Loaded((keys.index, plan), keys, bad, {})
