"""Features of named images, whatever their order, and the names of a ground truth."""

import logging
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import DataError
from patchssl.evaluate.features import Features, meta_part

logger = logging.getLogger(__name__)

_NUM_NAMED = 5


def rows_by_name(part: str, features: Features, names: Sequence[str]) -> NDArray[np.int64]:
    """Find the feature of each name.

    An id is a name itself, or a path whose last part without suffix is one. Features without ids are in the order of
    the names.

    Args:
        part: what they are, for instance `database`.
        features: (M, D).
        names: each once.

    Returns:
        (len(names),) rows of the features, -1 where the image could not be read.

    Raises:
        DataError: there are too few or too many features, an image has two, or there is none for a name although all
            images could be read.
    """
    if features.ids is None:
        if len(features) != len(names):
            raise DataError(
                f"there are {len(features)} {part} features for {len(names)} images of the ground truth; give one for "
                "each, in its order, or an array `ids` with their names"
            )
        return np.arange(len(names))
    place = {name: number for number, name in enumerate(names)}
    rows = np.full(len(names), -1, np.int64)
    unknown = []
    for row, name in enumerate(features.ids.tolist()):
        number = place.get(name, place.get(name_of(name)))
        if number is None:
            unknown.append(name)
        elif rows[number] >= 0:
            raise DataError(f"two {part} features are of the image {names[number]}; each image has one")
        else:
            rows[number] = row
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(features)} {part} features are of images that the ground truth does not name "
            f"({_some(unknown)}); further images belong to the distractors"
        )
    _check_missing(part, features, [names[number] for number in np.flatnonzero(rows < 0).tolist()])
    return rows


def name_of(image_id: str) -> str:
    """The last part of a path without its suffix."""
    return PurePath(image_id).stem


def _check_missing(part: str, features: Features, missing: Sequence[str]) -> None:
    if not missing:
        return
    if len(missing) > meta_part(features, "dataset").get("num_unreadable", 0):
        raise DataError(
            f"{len(missing)} images of the ground truth have no {part} feature ({_some(missing)}); every one needs its "
            "own, or the score would be of another task"
        )
    told = "leave the mean" if part == "query" else "count as never found where they are right"
    logger.warning("%d %s images could not be read and %s: %s", len(missing), part, told, _some(missing))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NUM_NAMED]) + (", …" if len(names) > _NUM_NAMED else "")
