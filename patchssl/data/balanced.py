"""Some of the images of labelled data, as many of each class as there can be."""

import numpy as np
from numpy.typing import NDArray


def balanced_counts(available: NDArray[np.int64], num: int) -> tuple[NDArray[np.int64], int]:
    """Share a number of images out among classes: equally, and what small classes lack among the others.

    Args:
        available: (C,) images of each class.
        num: how many are wanted.

    Returns:
        (C,) how many to take of each class, and how many are left over: fewer than the classes that have more, each of
        which may take one of them. Together they are num, or all images where there are no more.
    """
    level, left = 0, min(num, int(available.sum()))
    while left:
        more = int(np.count_nonzero(available > level))
        # As far as every class that has more can go along.
        rise = min(left // more, int(available[available > level].min()) - level)
        if not rise:
            break
        level, left = level + rise, left - rise * more
    return np.minimum(available, level), left


def balanced_rows(labels: NDArray[np.int64], num: int, *, seed: int, stream: int) -> NDArray[np.int64]:
    """Draw images, as many of each class as `balanced_counts` says.

    Args:
        labels: (M,) any integers.
        num: how many images; all where there are no more.
        seed: of the draw, not negative.
        stream: tells several draws with one seed apart.

    Returns:
        Their places, ascending.
    """
    generator = np.random.default_rng([seed, stream])
    _, classes, available = np.unique(labels, return_inverse=True, return_counts=True)
    counts, left = balanced_counts(available.astype(np.int64), num)
    counts[generator.permutation(np.flatnonzero(available > counts))[:left]] += 1
    # A stable sort brings the images of a class together, in their order.
    groups = np.split(np.argsort(classes, kind="stable"), np.cumsum(available)[:-1])
    drawn = [generator.permutation(rows)[:count] for rows, count in zip(groups, counts, strict=True)]
    return np.sort(np.concatenate(drawn)).astype(np.int64)
