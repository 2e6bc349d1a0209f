"""Pictures that stand in two parts of a data set, where each should be in one."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from patchssl.data.inspection.collection import Collection
from patchssl.data.inspection.duplicates import Duplicates, labels_agree
from patchssl.data.inspection.near import NearPairs

SAME_FILE, SAME_PICTURE, NEAR = "same file", "same picture", "near"


@dataclass(frozen=True, slots=True)
class Leak:
    """An image of a part, and one of a later part that is equal or nearly so.

    Attributes:
        kind: SAME_FILE, SAME_PICTURE (in another file), or NEAR.
        cosine: of their features, None for equal pictures.
        one: place of the image in the earlier part; of several the first.
        other: place of the image in the later part.
        labels_agree: `yes`, `no`, or nothing where one of them has none.
    """

    kind: str
    cosine: float | None
    one: int
    other: int
    labels_agree: str


@dataclass(frozen=True, slots=True)
class LeakCount:
    """What two parts share.

    Attributes:
        num_same_file: images of the later part that are in the earlier one, byte by byte.
        num_same_picture: images of the later part whose pixels alone are in the earlier one.
        num_near: pairs of unequal pictures, one in each part; None where near-duplicates were not searched.
        num_disagreeing: of all of these, those whose labels differ.
    """

    parts: tuple[str, str]
    num_same_file: int
    num_same_picture: int
    num_near: int | None
    num_disagreeing: int

    @property
    def num_all(self) -> int:
        """Everything together."""
        return self.num_same_file + self.num_same_picture + (self.num_near or 0)


@dataclass(frozen=True, slots=True)
class Leakage:
    """All that is shared, and how much by each two parts; parts that share nothing are there with zeros."""

    leaks: tuple[Leak, ...]
    counts: tuple[LeakCount, ...]


def find_leakage(collection: Collection, duplicates: Duplicates, near: NearPairs | None) -> Leakage:
    """Compare every two of the collection's splits.

    Args:
        collection: M images.
        duplicates: of them.
        near: pairs of unequal pictures, if they were searched.
    """
    of_picture = _first_in_part(collection, duplicates.first_picture)
    of_file = _first_in_part(collection, duplicates.first_file)
    leaks, counts = [], []
    for earlier, later in combinations(collection.splits, 2):
        found = list(_exact(collection, duplicates, of_file, of_picture, earlier, later))
        if near is not None:
            found += _near(collection, near, of_picture, earlier, later)
        kinds = [leak.kind for leak in found]
        counts.append(
            LeakCount(
                (collection.parts[earlier], collection.parts[later]),
                kinds.count(SAME_FILE),
                kinds.count(SAME_PICTURE),
                None if near is None else kinds.count(NEAR),
                sum(leak.labels_agree == "no" for leak in found),
            )
        )
        leaks += found
    return Leakage(tuple(leaks), tuple(counts))


def _first_in_part(collection: Collection, first: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M, parts): for the first image of each group, the first member in each part; M where there is none."""
    num = len(collection)
    found = np.full((num, len(collection.parts)), num, np.int64)
    np.minimum.at(found, (first, collection.part_of), np.arange(num))
    return found


def _exact(
    collection: Collection,
    duplicates: Duplicates,
    of_file: NDArray[np.int64],
    of_picture: NDArray[np.int64],
    earlier: int,
    later: int,
) -> Iterator[Leak]:
    """A leak for each image of the later part that is in the earlier one, with its own file there if there is one."""
    inside = np.flatnonzero(collection.part_of == later)
    same_file = of_file[duplicates.first_file[inside], earlier]
    same_picture = of_picture[duplicates.first_picture[inside], earlier]
    num = len(collection)
    for place in np.flatnonzero(same_picture < num):
        is_file = same_file[place] < num
        one, other = int(same_file[place] if is_file else same_picture[place]), int(inside[place])
        kind = SAME_FILE if is_file else SAME_PICTURE
        yield Leak(kind, None, one, other, labels_agree(collection, one, other))


def _near(
    collection: Collection, near: NearPairs, of_picture: NDArray[np.int64], earlier: int, later: int
) -> Iterator[Leak]:
    """A leak for each pair of pictures of which one is in the earlier part and the other in the later."""
    num = len(collection)
    for first, second in ((near.one, near.other), (near.other, near.one)):
        ones, others = of_picture[first, earlier], of_picture[second, later]
        for place in np.flatnonzero((ones < num) & (others < num)):
            one, other = int(ones[place]), int(others[place])
            yield Leak(NEAR, float(near.cosines[place]), one, other, labels_agree(collection, one, other))
