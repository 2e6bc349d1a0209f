"""Sources that change the pixels of another."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patchssl.data.images import ImageSource


class WrappedSource:
    """What a source of changed pixels has in common with the source that they come from."""

    source: ImageSource

    @property
    def ids(self) -> Sequence[str]:
        """Those of the source."""
        return self.source.ids

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Those of the source."""
        return self.source.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the source."""
        return self.source.classes

    @property
    def name(self) -> str:
        """That of the source."""
        return self.source.name

    @property
    def location(self) -> str:
        """That of the source."""
        return self.source.location

    def __len__(self) -> int:
        return len(self.source)
