"""Which images of a gallery are of a query's class, and which is the query itself."""

import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from patchssl.evaluate.features import Features

logger = logging.getLogger(__name__)

_NUM_NAMED = 5
_CHUNK_RANKS = 8_000_000


class Positives:
    """The images of the gallery that are right for each query."""

    def __init__(self, gallery: NDArray[np.int64], queries: NDArray[np.int64], own: NDArray[np.int64]) -> None:
        """Count them.

        Args:
            gallery: (M,) labels.
            queries: (Q,) labels.
            own: (Q,) the row of the gallery that is the query itself, or -1.
        """
        self.order = np.argsort(gallery, kind="stable")
        ordered = gallery[self.order]
        self.starts, self.ends = (np.searchsorted(ordered, queries, side=side) for side in ("left", "right"))
        self.own = own
        own_is_right = (own >= 0) & (gallery[own] == queries)
        self.nums: NDArray[np.int64] = self.ends - self.starts - own_is_right

    def of(self, query: int) -> NDArray[np.int64]:
        """The rows of the gallery that are right for a query, without its own."""
        rows = self.order[self.starts[query] : self.ends[query]]
        others: NDArray[np.int64] = rows[rows != self.own[query]]
        return others

    def chunks(self, queries: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Queries whose ranks fit into memory together."""
        numbers = np.cumsum(self.nums[queries]) // _CHUNK_RANKS
        yield from np.split(queries, np.flatnonzero(np.diff(numbers)) + 1)


def own_rows(gallery: Features, queries: Features) -> NDArray[np.int64]:
    """(Q,) the row of the gallery with the query's id, -1 where there is none; without ids nothing can be told."""
    own = np.full(len(queries), -1, np.int64)
    if gallery.ids is None or queries.ids is None:
        return own
    shared, rows, asked = np.intersect1d(gallery.ids, queries.ids, return_indices=True)
    own[asked] = rows
    if len(shared):
        logger.warning(
            "%d of %d queries stand in the gallery too (%s); none counts for itself",
            len(shared),
            len(queries),
            ", ".join(map(str, shared[:_NUM_NAMED])) + (", …" if len(shared) > _NUM_NAMED else ""),
        )
    return own
