"""Which training images are held out to choose by."""

import logging

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def hold_out(classes: NDArray[np.int64], fraction: float, *, seed: int) -> NDArray[np.bool_]:
    """Hold out a fraction of each class, drawn at random.

    A class of n images gives fraction · n of them, rounded half to even, but at least one and at most n - 1; a class
    of a single image stays in training, which is warned of.

    Args:
        classes: (M,) the class of each image.
        fraction: above 0, below 1.
        seed: of the draw.

    Returns:
        (M,) bool: held out.

    Raises:
        ConfigError: the fraction is none.
        DataError: no class has two images, so nothing can be held out.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"the held-out fraction is {fraction}; allowed: above 0 and below 1, for instance 0.1")
    generator = np.random.default_rng(seed)
    held = np.zeros(len(classes), dtype=bool)
    names, counts = np.unique(classes, return_counts=True)
    # A stable sort brings the images of a class together, in their order.
    groups = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    for rows, num in zip(groups, counts.tolist(), strict=True):
        drawn = generator.permutation(rows)
        if num > 1:
            held[drawn[: min(max(round(fraction * num), 1), num - 1)]] = True
    num_single = int(np.count_nonzero(counts == 1))
    if not held.any():
        raise DataError(
            f"none of the {len(names)} classes has two training images, so that nothing can be held out to choose by; "
            "give more images, or take the protocol dino, which chooses nothing"
        )
    if num_single:
        logger.warning(
            "%d of %d classes have a single training image and none that is held out: the choice does not see them",
            num_single,
            len(names),
        )
    return held
