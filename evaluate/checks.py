"""What features must be before anything is learned from them, and the places of their labels among the classes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import DataError
from patchssl.evaluate.features import Features, meta_part
from patchssl.evaluate.search.blocks import non_finite_rows

logger = logging.getLogger(__name__)

_NUM_NAMED = 5
_SAME_IMAGE = 1e-5  # relative difference of features; one image in two batches of fp32 differs less
_ROUNDING = {"precision"}


@dataclass(frozen=True, eq=False, slots=True)
class Targets:
    """Labels as places among the classes of the training part.

    Attributes:
        classes: (C,) the labels of the training part, each once, ascending.
        train: (M,) in [0, C).
        test: (Q,) in [0, C), -1 where the class has no training image.
    """

    classes: NDArray[np.int64]
    train: NDArray[np.int64]
    test: NDArray[np.int64]

    @property
    def num_unknown(self) -> int:
        """Test images of classes without training images."""
        return int(np.count_nonzero(self.test < 0))


def check_pair(train: Features, test: Features) -> None:
    """Check both parts alone, and that they belong together.

    Raises:
        DataError: as check_features and check_ids, or the widths differ, or the settings that both were made with.
    """
    for name, part in (("training", train), ("test", test)):
        check_features(name, part)
        check_ids(name, part)
    if train.dim != test.dim:
        raise DataError(
            f"training features are {train.dim} wide, test features {test.dim}; both must come from one model"
        )
    told = _differing(train, test)
    if told:
        raise DataError(f"training and test features were made differently ({told}); make both with the same settings")


def _differing(first: Features, second: Features) -> str:
    """The settings that both tell and that differ, in words."""
    ours, theirs = (meta_part(part, "settings") for part in (first, second))
    differing = [name for name in sorted(ours.keys() & theirs.keys() - _ROUNDING) if ours[name] != theirs[name]]
    return "; ".join(f"{name} {ours[name]!r} and {theirs[name]!r}" for name in differing)


def check_parts(parts: Mapping[str, Features]) -> None:
    """Check the parts of a search alone, and that they belong together.

    Args:
        parts: by name, for instance `database` and `queries`; with or without labels.

    Raises:
        DataError: as check_values and check_ids, or the widths differ, or the settings that parts were made with.
    """
    for name, part in parts.items():
        check_values(name, part)
        check_ids(name, part)
    (first, learned), *others = parts.items()
    for name, part in others:
        if part.dim != learned.dim:
            raise DataError(
                f"{first} features are {learned.dim} wide, {name} features {part.dim}; all must come from one model"
            )
        told = _differing(learned, part)
        if told:
            raise DataError(
                f"{first} and {name} features were made differently ({told}); make all with the same settings"
            )


def check_features(name: str, part: Features) -> None:
    """Refuse features that give no number, or a wrong one.

    Args:
        name: of the part, for instance `training`.
        part: (M, D).

    Raises:
        DataError: it is empty, has no labels, or holds non-finite values.
    """
    if len(part) and part.dim and part.labels is None:
        raise DataError(f"the {name} features have no labels; classification needs an array `labels`")
    check_values(name, part)


def check_values(name: str, part: Features) -> None:
    """Refuse features that give no number, whether they have labels or not.

    Args:
        name: of the part, for instance `database`.
        part: (M, D).

    Raises:
        DataError: it is empty, or holds non-finite values.
    """
    if len(part) == 0 or part.dim == 0:
        raise DataError(f"the {name} features are empty: shape {part.features.shape}")
    bad = non_finite_rows(part.features)
    if len(bad):
        first = [str(part.ids[row]) if part.ids is not None else f"row {row}" for row in bad[:_NUM_NAMED]]
        raise DataError(
            f"{len(bad)} of {len(part)} {name} features hold NaN or infinite values ({', '.join(first)}"
            f"{', …' if len(bad) > _NUM_NAMED else ''}); the weights may be broken, or fp16 too narrow: try fp32"
        )


def check_ids(name: str, part: Features) -> None:
    """Refuse a part in which an image stands twice.

    Args:
        name: of the part, for instance `training`.
        part: M features; without ids nothing can be told.

    Raises:
        DataError: an id occurs more than once.
    """
    if part.ids is None:
        return
    ids, counts = np.unique(part.ids, return_counts=True)
    twice = ids[counts > 1]
    if len(twice):
        raise DataError(
            f"{len(twice)} ids of the {name} features occur more than once ({', '.join(map(str, twice[:_NUM_NAMED]))}"
            f"{', …' if len(twice) > _NUM_NAMED else ''}); each image must stand once, so remove the repeats"
        )


def warn_of_leaks(train: Features, test: Features) -> int:
    """Count the test images that stand in the training part too, and warn of them: they inflate a score.

    An id may be a path below the part's own folder, so that `train/cat/1.jpg` and `val/cat/1.jpg` share one: an image
    counts only if its features are the same as well.

    Args:
        train: (M, D) features; without ids nothing can be told.
        test: (Q, D) features, likewise.
    """
    if train.ids is None or test.ids is None:
        return 0
    shared, rows, queries = np.intersect1d(train.ids, test.ids, return_indices=True)
    ours, theirs = train.features[rows], test.features[queries]
    same = np.linalg.norm(ours - theirs, axis=1) <= _SAME_IMAGE * np.linalg.norm(ours, axis=1)
    num_leaked = int(np.count_nonzero(same))
    if num_leaked:
        logger.warning(
            "%d of %d test images have the id and the features of a training image (%s): the score is too high by what "
            "is only found again; leave them out of one part",
            num_leaked,
            len(test),
            ", ".join(map(str, shared[same][:_NUM_NAMED])) + (", …" if num_leaked > _NUM_NAMED else ""),
        )
    return num_leaked


def place_labels(train: NDArray[np.int64], test: NDArray[np.int64]) -> Targets:
    """Find the place of each label among the classes of the training part.

    Test images of other classes are warned of; they count as wrong.

    Args:
        train: (M,) any integers, M at least 1.
        test: (Q,) any integers.
    """
    classes, places = np.unique(train, return_inverse=True)
    near = np.minimum(np.searchsorted(classes, test), len(classes) - 1)
    targets = Targets(classes, places.astype(np.int64), np.where(classes[near] == test, near, -1).astype(np.int64))
    if targets.num_unknown:
        missing = np.unique(test[targets.test < 0])
        logger.warning(
            "%d of %d test images are of %d classes without training images (labels %s) and count as wrong",
            targets.num_unknown,
            len(test),
            len(missing),
            ", ".join(map(str, missing[:_NUM_NAMED])) + (", …" if len(missing) > _NUM_NAMED else ""),
        )
    return targets
