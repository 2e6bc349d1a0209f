"""In which order the images of a source are gone through."""

import logging

import numpy as np
from numpy.typing import NDArray

from patchssl.data.images import ImageSource
from patchssl.data.lanes import Blocks, lane_order

logger = logging.getLogger(__name__)


def epoch_order(
    source: ImageSource, *, seed: int, epoch: int, shuffle_buffer: int | None = None, batch_size: int = 1
) -> NDArray[np.int64]:
    """The order of one epoch: a permutation of the source that follows from what is given here alone.

    A source that tells its `blocks` is gone through with locality, as `lane_order` says, unless the buffer holds all.

    Args:
        source: M images.
        seed: of the run.
        epoch: from 0.
        shuffle_buffer: images of such a source that are shuffled among each other; None: all.
        batch_size: of the training.

    Returns:
        (M,) places in the source, each once.
    """
    num_images, blocks = len(source), blocks_of(source)
    rng = np.random.default_rng([seed, epoch])
    buffer = num_images if shuffle_buffer is None else shuffle_buffer
    if blocks is not None:
        buffer = min(buffer, blocks.max_buffer or buffer)
    if blocks is None or buffer >= num_images:
        return rng.permutation(num_images)
    in_batch = epoch * num_images % batch_size
    return lane_order(blocks, shuffle_buffer=buffer, batch_size=batch_size, in_batch=in_batch, rng=rng)


def blocks_of(source: ImageSource) -> Blocks | None:
    """How images lie together, of a source for which that matters."""
    found = getattr(source, "blocks", None)
    return found if isinstance(found, Blocks) else None


def tell_smaller_buffer(source: ImageSource, shuffle_buffer: int | None) -> None:
    """Warn where fewer images are shuffled among each other than asked for."""
    blocks = blocks_of(source)
    if blocks is None or blocks.max_buffer is None or len(source) <= blocks.max_buffer:
        return
    asked = len(source) if shuffle_buffer is None else shuffle_buffer
    if asked > blocks.max_buffer:
        logger.warning(
            "data.shuffle_buffer is %s; of %s only %s images are shuffled among each other, since a loader process "
            "would have to keep too many row groups",
            f"{asked:,}",
            source.location,
            f"{blocks.max_buffer:,}",
        )
