"""Some images of a source as a source of their own."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchssl.data.images import Stored, StoredSource


@dataclass(frozen=True, eq=False)
class Subset:
    """Images of a source, without their labels; ids are their places in it, as text, by which they are found again.

    Attributes:
        whole: the source.
        places: (m,) of the images.
    """

    whole: StoredSource
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The place of each in the source."""
        return tuple(str(place) for place in self.places.tolist())

    @property
    def labels(self) -> None:
        """None."""
        return

    @property
    def classes(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def name(self) -> str:
        """Of the source."""
        return self.whole.name

    @property
    def location(self) -> str:
        """Of the source."""
        return self.whole.location

    @property
    def apply_exif(self) -> bool:
        """As the source."""
        return self.whole.apply_exif

    def where(self, index: int) -> str:
        """How the source names it."""
        return self.whole.where(int(self.places[index]))

    def fetch(self, index: int) -> Stored:
        """An image as the source keeps it; raises UnreadableImage."""
        return self.whole.fetch(int(self.places[index]))

    def read(self, index: int) -> Image.Image:
        """Decode one image as RGB; raises UnreadableImage."""
        return self.whole.read(int(self.places[index]))

    def fingerprint(self) -> str:
        """Hash of the source's and of the places."""
        return self._hashed(self.whole.fingerprint())

    def state(self) -> str:
        """Hash of the source's and of the places."""
        return self._hashed(self.whole.state())

    def _hashed(self, whole: str) -> str:
        return hashlib.sha256(whole.encode() + self.places.astype("<i8").tobytes()).hexdigest()
