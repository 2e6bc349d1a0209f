"""Images that belong together, as arrays: who is the first of one's equals, and what are the groups."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, slots=True)
class Groups:
    """Groups of two members or more, by their first member.

    Attributes:
        members: (K,) places, ascending within each group.
        starts: (G,) where each group begins among the members, ascending.
    """

    members: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        """The members of each group."""
        for number in range(len(self)):
            yield self[number]

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """The members of one group."""
        end = self.starts[number + 1] if number + 1 < len(self.starts) else len(self.members)
        return self.members[self.starts[number] : end]

    @property
    def num_members(self) -> int:
        """K, of all groups together."""
        return len(self.members)

    @property
    def num_superfluous(self) -> int:
        """How many could go so that one of each group stays."""
        return len(self.members) - len(self.starts)


def first_equal(digests: NDArray[np.uint64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each image the first one of equal digest.

    Args:
        digests: (M, 2).
        chosen: (m,) the places that count, ascending; the others equal none.

    Returns:
        (M,) places; its own where there is none before it.
    """
    first = np.arange(len(digests))
    order = chosen[np.lexsort((digests[chosen, 0], digests[chosen, 1]))]  # stable, so ascending among equals
    if len(order):
        begins = np.append(True, (digests[order[1:]] != digests[order[:-1]]).any(axis=1))
        first[order] = order[begins][begins.cumsum() - 1]
    return first


def groups_of(first: NDArray[np.int64]) -> Groups:
    """Groups from what `first_equal` or `components` returns, (M,)."""
    sizes = np.bincount(first, minlength=len(first)) if len(first) else first
    members = np.flatnonzero(sizes[first] > 1)
    members = members[np.argsort(first[members], kind="stable")]
    starts = np.flatnonzero(np.diff(first[members], prepend=-1))
    return Groups(members, starts)


def components(num: int, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """The connected components of a graph.

    Args:
        num: M nodes.
        one: (E,) ends of edges.
        other: (E,) their other ends.

    Returns:
        (M,) the lowest node that each is connected with.
    """
    root = np.arange(num)
    while len(one):
        low, high = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        is_open = low < high
        one, other = one[is_open], other[is_open]
        # Of the roots that edges join the higher one goes below the lower one; then each node is led to its root.
        np.minimum.at(root, high[is_open], low[is_open])
        while (root[root] != root).any():
            root = root[root]
    return root
