"""Some images of labelled data that stay in memory, cropped."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchssl import ranks
from patchssl.data.balanced import balanced_rows
from patchssl.data.crops import read_crops
from patchssl.data.images import ImageSource
from patchssl.data.sources import open_labelled
from patchssl.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

PARTS = ("train", "test")
_BATCH_IMAGES = 64
_NUM_NAMED = 5


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """The images of a part that this process holds.

    Attributes:
        rows: (m,) their places in the source, ascending.
        pixels: (m, 3, side, side) uint8.
    """

    rows: NDArray[np.int64]
    pixels: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class LabelledSubset:
    """Some of the training and of the test images of labelled data, as many of each class as there can be.

    Attributes:
        sources: the data, by the names of `PARTS`.
        rows: the places of the chosen images, ascending.
    """

    sources: Mapping[str, ImageSource]
    rows: Mapping[str, NDArray[np.int64]]

    @classmethod
    def choose(cls, data: str, *, num_train: int, num_test: int, seed: int) -> "LabelledSubset":
        """Open data as `eval knn` takes it and draw images; none is read yet.

        Test images of classes without training images are left out.

        Args:
            data: named as on the command line.
            num_train: images of the training part, at least one of each class; all where there are no more.
            num_test: the same for the test part.
            seed: of the draw.

        Raises:
            DataError: the data are not there, not labelled, or of one class; or no test image has a class of training
                images.
            ConfigError: num_train is less than the number of classes.
        """
        sources = open_labelled(data, apply_exif=False)
        train, test = (labels_of(sources[part]) for part in PARTS)
        known = np.flatnonzero(np.isin(test, train))
        _check_classes(sources["train"], train, num_train)
        if not len(known):
            raise DataError(
                f"none of the {len(test)} test images of {data} is of a class with training images; both parts must "
                "have the same classes"
            )
        if len(known) < len(test):
            logger.warning(
                "%d of %d test images of %s are of classes without training images and left out",
                *(len(test) - len(known), len(test), data),
            )
        judged = known[balanced_rows(test[known], num_test, seed=seed, stream=1)]
        return cls(sources, {"train": balanced_rows(train, num_train, seed=seed, stream=0), "test": judged})

    @property
    def num_classes(self) -> int:
        """Classes of the chosen training images."""
        return len(np.unique(labels_of(self.sources["train"])[self.rows["train"]]))

    def read(
        self, crop: Callable[[Image.Image], Tensor], *, num_workers: int, max_bad_fraction: float
    ) -> tuple["LabelledSubset", dict[str, Kept]]:
        """Read the images; each of several processes reads and holds an equal share of them.

        Args:
            crop: turns an RGB image into (3, side, side) uint8.
            num_workers: processes that decode; 0 decodes in this one.
            max_bad_fraction: unreadable images above this fraction are an error; the others are left out, with a
                warning.

        Returns:
            What can be read of the subset, and this process's share.

        Raises:
            DataError: too many images are unreadable, or fewer than two classes or no test image are left.
        """
        kept: dict[str, Kept] = {}
        rows: dict[str, NDArray[np.int64]] = {}
        unreadable: list[str] = []
        for part, chosen in self.rows.items():
            own = chosen[ranks.rank() :: ranks.world_size()]
            kept[part], bad = _read(self.sources[part], crop, own, num_workers)
            unreadable += [told for of_process in ranks.gather(bad) for told in of_process]
            rows[part] = np.sort(np.concatenate(ranks.gather(kept[part].rows)))
        _check_readable(unreadable, sum(map(len, self.rows.values())), max_bad_fraction)
        readable = LabelledSubset(self.sources, rows)
        if readable.num_classes < 2 or not len(rows["test"]):
            raise DataError(
                f"of {self.sources['train'].location} {readable.num_classes} classes of training images and "
                f"{len(rows['test'])} test images can be read; needed are two classes and one test image"
            )
        return readable, kept


def labels_of(source: ImageSource) -> NDArray[np.int64]:
    """(M,) the labels of a source that has some."""
    assert source.labels is not None
    return source.labels


def _check_classes(source: ImageSource, labels: NDArray[np.int64], num_train: int) -> None:
    classes = np.unique(labels)
    if len(classes) < 2:
        raise DataError(
            f"the {len(labels)} training images of {source.location} are of one class only, "
            f"{source.classes[classes[0]]}; there must be at least two to tell apart"
        )
    if num_train < len(classes):
        raise ConfigError(
            f"{num_train} training images are to be taken of {source.location}, which has {len(classes)} classes; take "
            f"at least {len(classes)}, one of each"
        )


def _check_readable(unreadable: Sequence[str], num: int, max_bad_fraction: float) -> None:
    for told in unreadable:
        logger.warning("left out %s", told)
    if len(unreadable) > max_bad_fraction * num:
        raise DataError(
            f"{len(unreadable)} of {num} labelled images are unreadable, allowed are {max_bad_fraction:.1%} "
            f"(--max-bad-fraction); mend or remove them, for instance {'; '.join(unreadable[:_NUM_NAMED])}"
        )


def _read(
    source: ImageSource, crop: Callable[[Image.Image], Tensor], rows: NDArray[np.int64], num_workers: int
) -> tuple[Kept, list[str]]:
    """The crops of some images, and path and reason of each that cannot be read."""
    batches = [rows[start : start + _BATCH_IMAGES].tolist() for start in range(0, len(rows), _BATCH_IMAGES)]
    pixels = torch.empty(0, dtype=torch.uint8)
    readable: list[int] = []
    unreadable: list[str] = []
    for batch in read_crops(source, crop, batches, num_workers=num_workers, pin_memory=False):
        unreadable += [f"{path}: {reason}" for _, path, reason in batch.unreadable]
        if not batch.indices:
            continue
        crops = batch.pixels
        assert isinstance(crops, Tensor), "crops of one size"
        if not readable:
            # At once and whole: joined at the end, they would need the memory twice.
            pixels = crops.new_empty((len(rows), *crops.shape[1:]))
        pixels[len(readable) : len(readable) + len(crops)] = crops
        readable += batch.indices
    return Kept(np.array(readable, dtype=np.int64), pixels[: len(readable)]), unreadable
