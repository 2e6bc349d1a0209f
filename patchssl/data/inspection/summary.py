"""Counts and sizes, from what is known of each image."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchssl.data.inspection.collection import NO_LABEL, Collection
from patchssl.data.inspection.facts import EVEN, NEARLY_EVEN, Facts


@dataclass(frozen=True, slots=True)
class PartCount:
    """What a part holds.

    Attributes:
        name: of the part.
        num_images: the unreadable ones among them.
        num_unreadable: how many cannot be read.
        num_bytes: of the images as they are stored.
        num_unlabelled: images without a label; 0 where no part has labels.
        classes: images of each class that has any, by the order of names.
        missing_classes: classes of other parts that have none here; none for a part without labels.
    """

    name: str
    num_images: int
    num_unreadable: int
    num_bytes: int
    num_unlabelled: int
    classes: dict[str, int]
    missing_classes: tuple[str, ...]

    @property
    def smallest_class(self) -> tuple[str, int] | None:
        """The class with the fewest images, of several the first by name, and how many."""
        return min(self.classes.items(), key=lambda item: item[1], default=None)

    @property
    def largest_class(self) -> tuple[str, int] | None:
        """The class with the most images, of several the first by name, and how many."""
        return max(self.classes.items(), key=lambda item: item[1], default=None)


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of some values."""

    min: float
    median: float
    max: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the readable images, upright, in pixels; the aspect ratio is width over height."""

    width_px: Spread
    height_px: Spread
    shorter_side_px: Spread
    aspect_ratio: Spread


@dataclass(frozen=True, slots=True)
class Kinds:
    """How the readable images are stored.

    Attributes:
        formats: images of each, the most frequent first.
        colours: the same; RGB, grey, palette, CMYK or other.
        num_16_bit: images with more than 8 bits for a value.
        num_with_alpha: images with transparency, whether or not any of it is used.
        num_exif_turned: images that are turned or mirrored by their EXIF orientation.
        num_one_colour: images all of whose pixels are equal.
        num_nearly_one_colour: images of which nearly all pixels are nearly equal, those of one colour left out.
    """

    formats: dict[str, int]
    colours: dict[str, int]
    num_16_bit: int
    num_with_alpha: int
    num_exif_turned: int
    num_one_colour: int
    num_nearly_one_colour: int


def count_parts(collection: Collection, facts: Facts) -> tuple[PartCount, ...]:
    """Count the images of each part and of its classes."""
    return tuple(_count_part(collection, facts, place) for place in range(len(collection.parts)))


def _count_part(collection: Collection, facts: Facts, place: int) -> PartCount:
    inside = collection.part_of == place
    table, labels = facts.table[inside], collection.labels[inside]
    counts = np.bincount(labels[labels != NO_LABEL], minlength=len(collection.classes)).tolist()
    classes = {name: count for name, count in zip(collection.classes, counts, strict=True) if count}
    return PartCount(
        name=collection.parts[place],
        num_images=len(table),
        num_unreadable=int((~table["is_readable"]).sum()),
        num_bytes=int(table["num_bytes"].sum()),
        num_unlabelled=int((labels == NO_LABEL).sum()) if collection.is_labelled else 0,
        classes=classes,
        missing_classes=tuple(name for name in collection.classes if name not in classes) if classes else (),
    )


def sizes_of(facts: Facts) -> Sizes | None:
    """The sizes of the readable images; None where there are none."""
    if not len(facts.readable):
        return None
    width, height = (facts.table[name][facts.readable] for name in ("width", "height"))
    return Sizes(_spread(width), _spread(height), _spread(np.minimum(width, height)), _spread(width / height))


def _spread(values: NDArray[np.generic]) -> Spread:
    numbers = values.astype(np.float64)
    return Spread(float(numbers.min()), float(np.median(numbers)), float(numbers.max()))


def count_smaller(facts: Facts, side_px: int) -> int:
    """Readable images whose shorter side is below side_px."""
    table = facts.table[facts.readable]
    return int((np.minimum(table["width"], table["height"]) < side_px).sum())


def count_kinds(facts: Facts) -> Kinds:
    """How the readable images are stored, and how many show next to nothing."""
    table = facts.table[facts.readable]
    return Kinds(
        formats=_counted(table["format"].tolist()),
        colours=_counted(table["colours"].tolist()),
        num_16_bit=int(table["is_16_bit"].sum()),
        num_with_alpha=int(table["has_alpha"].sum()),
        num_exif_turned=int(table["is_turned"].sum()),
        num_one_colour=int((table["evenness"] == EVEN).sum()),
        num_nearly_one_colour=int((table["evenness"] == NEARLY_EVEN).sum()),
    )


def _counted(names: Sequence[bytes]) -> dict[str, int]:
    counts = Counter(name.decode() for name in names)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
