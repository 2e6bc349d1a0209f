"""What the images of a source are like, from some of them."""

from collections.abc import Sequence

import numpy as np

from patchssl.data.images import ImageSource
from patchssl.data.order import blocks_of


def some_of(source: ImageSource, num: int) -> Sequence[int]:
    """At most so many places in a source, evenly from all of it.

    Of a source whose images lie together in blocks they are of its first block, since of others a whole file may have
    to be fetched for a single image.
    """
    blocks = blocks_of(source)
    num_images = len(source) if blocks is None else int(blocks.sizes[np.flatnonzero(blocks.sizes)[0]])
    return range(0, num_images, max(1, -(-num_images // num)))
