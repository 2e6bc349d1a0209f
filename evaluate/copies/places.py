"""The ground truth of copy detection in terms of rows of features, and features that stand on two sides."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchssl.data.copy_truth import CopyTruth
from patchssl.data.listing import named
from patchssl.errors import DataError
from patchssl.evaluate.features import Features

logger = logging.getLogger(__name__)

_SAME_IMAGE = 1e-5  # relative difference of features, as for k-NN


@dataclass(frozen=True, eq=False, slots=True)
class Places:
    """The truth of Q queries.

    Attributes:
        blocks: (Q,) block of each query.
        rows: for each query the rows of its positives, each once.
        num_positives: (Q,) how many there are, those without features included: they cannot be found.
    """

    blocks: NDArray[np.str_]
    rows: tuple[NDArray[np.int64], ...]
    num_positives: NDArray[np.int64]


def place_positives(queries: Features, references: Features, truth: CopyTruth) -> Places:
    """Find the rows that are right for each query.

    Queries of the truth without features are unreadable images, and leave the evaluation; references without features
    stay in the count of what is to be found, and are warned of.

    Args:
        queries: Q features with ids.
        references: features with ids.
        truth: by those ids.

    Raises:
        DataError: there are no ids, a query is not in the truth, or no query with features has a positive.
    """
    for name, part in (("query", queries), ("reference", references)):
        if part.ids is None:
            raise DataError(
                f"the {name} features have no ids; the ground truth names images, so an array `ids` is needed"
            )
    assert queries.ids is not None
    assert references.ids is not None
    ids = [str(image) for image in queries.ids]
    foreign = [image for image in ids if image not in truth.blocks]
    if foreign:
        raise DataError(f"{len(foreign)} of {len(ids)} queries are not in the ground truth ({named(foreign)})")
    row_of = {str(image): row for row, image in enumerate(references.ids)}
    lost = sorted({match for image in ids for match in truth.positives[image] if match not in row_of})
    if lost:
        logger.warning("%d references have no features (%s); copies of them count as not found", len(lost), named(lost))
    rows = tuple(
        np.array(sorted(row_of[match] for match in truth.positives[image] if match in row_of), dtype=np.int64)
        for image in ids
    )
    num_positives = np.array([len(truth.positives[image]) for image in ids], dtype=np.int64)
    if not num_positives.any():
        raise DataError(f"none of the {len(ids)} queries with features is a copy; nothing can be found")
    return Places(np.array([truth.blocks[image] for image in ids], dtype=np.str_), rows, num_positives)


def check_distractors(parts: Mapping[str, Features]) -> None:
    """Refuse distractors that are a query or a reference, told by id and features.

    Args:
        parts: `references`, `distractors` and `queries`; without ids nothing can be told.

    Raises:
        DataError: some are.
    """
    distractors = parts["distractors"]
    for part in ("queries", "references"):
        other = parts[part]
        if distractors.ids is None or other.ids is None:
            continue
        shared, rows, others = np.intersect1d(distractors.ids, other.ids, return_indices=True)
        ours, theirs = distractors.features[rows], other.features[others]
        same = np.linalg.norm(ours - theirs, axis=1) <= _SAME_IMAGE * np.linalg.norm(ours, axis=1)
        if same.any():
            told = named([str(image) for image in shared[same]])
            raise DataError(
                f"{np.count_nonzero(same)} of {len(distractors)} distractors have the id and the features of one of "
                f"the {part} ({told}); they would count as wrong where they are right: remove them"
            )
        if len(shared):
            told = named([str(image) for image in shared])
            logger.warning("%d distractors have ids of %s (%s), but other features", len(shared), part, told)
