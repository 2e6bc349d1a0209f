"""A shuffled order in which images that are kept together are read at about the same time."""

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: More hardly mix better, and each keeps a file open.
MAX_LANES = 64


@dataclass(frozen=True)
class Blocks:
    """How the images of a source lie together.

    Attributes:
        sizes: (U,) int64 images of each block, in the order of the source: a tar file, or a row group of parquet.
        shards: (U,) int64 the file in which each lies.
        max_lanes: blocks that may be read side by side.
        max_buffer: images that may be shuffled among each other without reading blocks again and again; None: any.
    """

    sizes: NDArray[np.int64]
    shards: NDArray[np.int64]
    max_lanes: int = MAX_LANES
    max_buffer: int | None = None


def lane_order(
    blocks: Blocks, *, shuffle_buffer: int, batch_size: int, in_batch: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """An order of one epoch with locality: every image once.

    The shards are shuffled, and the blocks in each; one after another they are dealt to lanes, each to the one that
    has the fewest images so far. An image at place i of a lane of n among all M images gets the key i + uniform(0, b)
    with b = shuffle_buffer * n / M, and the lane is sorted by these: no image moves by b places or more. Then lanes are
    merged so that all of them advance evenly, and inside each batch the images are sorted by lane, so that processes
    that take contiguous parts of it read lanes of their own.

    Args:
        blocks: of the M images.
        shuffle_buffer: images that are shuffled among each other, of all lanes together.
        batch_size: of the training.
        in_batch: how many images of the epoch before stand in the batch in which this one begins.
        rng: draws everything.

    Returns:
        (M,) places in the source, each once.
    """
    order = _shuffled_blocks(blocks, rng)
    # With more lanes than a batch has images, each process would go through all lanes in turn.
    num_lanes = max(1, min(len(order), MAX_LANES, blocks.max_lanes, batch_size))
    lane_of = _dealt(blocks.sizes[order], num_lanes)
    starts = np.cumsum(blocks.sizes) - blocks.sizes
    total = int(blocks.sizes.sum())
    indices, done = [], []
    for lane in range(num_lanes):
        own = order[lane_of == lane]
        places = _ranges(starts[own], blocks.sizes[own])
        keys = np.arange(len(places)) + rng.random(len(places)) * (shuffle_buffer * len(places) / max(1, total))
        indices.append(places[np.argsort(keys, kind="stable")])
        done.append((np.arange(len(places)) + 0.5) / max(1, len(places)))
    lanes = np.repeat(np.arange(num_lanes, dtype=np.uint8), [len(part) for part in indices])
    merged = np.argsort(np.concatenate(done), kind="stable")
    merged = merged[_by_lane(lanes[merged], batch_size, in_batch)]
    return np.concatenate(indices)[merged]


def _shuffled_blocks(blocks: Blocks, rng: np.random.Generator) -> NDArray[np.int64]:
    """Blocks with images, those of a shard one after another."""
    of_shard = rng.permutation(int(blocks.shards.max(initial=-1)) + 1)
    order: NDArray[np.int64] = np.lexsort((rng.random(len(blocks.sizes)), of_shard[blocks.shards]))
    return order[blocks.sizes[order] > 0]


def _dealt(sizes: NDArray[np.int64], num_lanes: int) -> NDArray[np.int64]:
    """(U,) the lane of each block."""
    filled = [(0, lane) for lane in range(num_lanes)]
    lanes = np.empty(len(sizes), dtype=np.int64)
    for number, size in enumerate(sizes.tolist()):
        total, lane = filled[0]
        lanes[number] = lane
        heapq.heapreplace(filled, (total + size, lane))
    return lanes


def _ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join range(start, start + size) of all blocks."""
    before = np.cumsum(sizes) - sizes
    joined: NDArray[np.int64] = np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)
    return joined


def _by_lane(lanes: NDArray[np.uint8], batch_size: int, in_batch: int) -> NDArray[np.int64]:
    """(M,) places that sort each batch by lane; the first lacks what the epoch before has put into it."""
    order = np.arange(len(lanes))
    first = min(len(lanes), -in_batch % batch_size)
    last = first + (len(lanes) - first) // batch_size * batch_size
    whole = lanes[first:last].reshape(-1, batch_size)
    sorted_in_batch = np.argsort(whole, axis=1, kind="stable")
    order[first:last] = (first + np.arange(len(whole))[:, None] * batch_size + sorted_in_batch).ravel()
    for part in (slice(0, first), slice(last, None)):
        order[part] = order[part][np.argsort(lanes[part], kind="stable")]
    return order
