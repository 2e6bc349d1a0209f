"""In which order the images of a source are gone through."""

import numpy as np
from numpy.typing import NDArray

from patchssl.data.images import ImageSource


def epoch_order(source: ImageSource, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of one epoch: a permutation of the source that follows from seed and epoch alone.

    Args:
        source: M images.
        seed: of the run.
        epoch: from 0.

    Returns:
        (M,) places in the source, each once.
    """
    return np.random.default_rng([seed, epoch]).permutation(len(source))
