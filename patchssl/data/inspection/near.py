"""Pictures that are nearly equal, as the features of a model say."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchssl.data.inspection.groups import Groups, components, groups_of


@dataclass(frozen=True, eq=False, slots=True)
class NearPairs:
    """Pairs of unequal pictures, the most similar first; a picture in several images stands for itself once.

    Attributes:
        spec: the model.
        threshold: of the cosine.
        one: (P,) places of images.
        other: (P,) the same.
        cosines: (P,) float32.
        num_found: pairs at or above the threshold; more than P where they were too many to be kept.
        above: where they were too many, the cosine above which all were kept; else None.
        num_compared: pictures that have features.
    """

    spec: str
    threshold: float
    one: NDArray[np.int64]
    other: NDArray[np.int64]
    cosines: NDArray[np.float32]
    num_found: int
    above: float | None
    num_compared: int

    def groups(self, num_images: int) -> Groups:
        """Pictures that are connected by pairs, however many lie between them."""
        return groups_of(components(num_images, self.one, self.other))
