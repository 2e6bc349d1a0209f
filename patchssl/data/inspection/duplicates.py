"""Equal pictures within a data set: the same file again, or the same pixels in another file."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchssl.data.inspection.collection import NO_LABEL, Collection
from patchssl.data.inspection.facts import Facts
from patchssl.data.inspection.groups import Groups, first_equal, groups_of


@dataclass(frozen=True, eq=False, slots=True)
class Duplicates:
    """Equal readable images; those that cannot be read equal none.

    Attributes:
        first_file: (M,) the first image of the same bytes.
        first_picture: (M,) the first image of the same pixels, decoded as 8-bit RGB and upright.
        files: groups of equal bytes.
        pictures: groups of equal pixels; groups of equal bytes lie within them.
    """

    first_file: NDArray[np.int64]
    first_picture: NDArray[np.int64]
    files: Groups
    pictures: Groups

    @property
    def num_other_files(self) -> int:
        """Groups of equal pixels that lie in files of different bytes."""
        return len(self._parted_members(self.first_file))

    def conflicts(self, labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The members of each group of equal pixels with more than one label; images without a label contradict none.

        Args:
            labels: (M,), NO_LABEL for an image without.
        """
        return [members for members in self._parted_members(labels) if not agree(labels[members])]

    def _parted_members(self, values: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The groups of equal pixels whose members' values differ."""
        members, starts = self.pictures.members, self.pictures.starts
        if not len(starts):
            return []
        found = values[members]
        is_parted = np.maximum.reduceat(found, starts) != np.minimum.reduceat(found, starts)
        return [self.pictures[group] for group in np.flatnonzero(is_parted).tolist()]


def find_duplicates(facts: Facts) -> Duplicates:
    """Find equal images, by their digests."""
    first_file = first_equal(facts.table["file"], facts.readable)
    first_picture = first_equal(facts.table["pixels"], facts.readable)
    return Duplicates(first_file, first_picture, groups_of(first_file), groups_of(first_picture))


def agree(labels: NDArray[np.int64]) -> bool:
    """Whether labels are equal, those of images that have none left out."""
    return len(np.unique(labels[labels != NO_LABEL])) < 2


def pictures_of(facts: Facts, duplicates: Duplicates) -> NDArray[np.int64]:
    """The readable images of which none is equal to one before it."""
    places = facts.readable
    is_first = duplicates.first_picture[places] == places
    return np.compress(is_first, places)


def labels_agree(collection: Collection, one: int, other: int) -> str:
    """Whether two images have one label: `yes`, `no`, or nothing where one of them has none."""
    labels = collection.labels[[one, other]]
    if (labels == NO_LABEL).any():
        return ""
    return "yes" if labels[0] == labels[1] else "no"
