"""Whitening learned from features of images that are neither searched nor tested.

Two kinds, under names of their own since their numbers differ. Uncentred, as in DINO's copy detection (arXiv 2104.14294
§4.2, eval_copy_detection.py): the mean of the set is taken from the data, but the covariance is the second moment of
the set as it is; all dimensions are kept. Centred, which is PCA whitening (Jégou and Chum, ECCV 2012; FAISS' `PCAW`):
the covariance is of the centred set, and the first dimensions are kept.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import ConfigError, DataError

_FLOOR = 1e-5  # of the largest eigenvalue, DINO's
_CHUNK_ROWS = 8192


@dataclass(frozen=True, eq=False, slots=True)
class Whitening:
    """A linear map that gives the set it was learned from equal variance in all directions.

    Attributes:
        mean: (D,) of the set.
        projection: (D, d).
        num_images: images that it was learned from.
    """

    mean: NDArray[np.float64]
    projection: NDArray[np.float64]
    num_images: int

    @property
    def dim(self) -> int:
        """How many dimensions are kept, d."""
        return int(self.projection.shape[1])

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Whiten features.

        Args:
            features: (M, D).

        Returns:
            (M, d) float32.

        Raises:
            DataError: they have another width.
        """
        if features.shape[1] != len(self.mean):
            raise DataError(f"features are {features.shape[1]} wide, the whitening is for {len(self.mean)}")
        whitened = np.empty((len(features), self.dim), np.float32)
        for start in range(0, len(features), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            whitened[part] = (features[part] - self.mean) @ self.projection
        return whitened


def fit(features: NDArray[np.float32], *, centred: bool, dim: int | None = None) -> Whitening:
    """Learn a whitening.

    Uncentred, eigenvalues below 1e-5 of the largest count as that, so that every dimension can be kept. Centred, such
    directions are left out: they are noise, and n images span n - 1 directions at most.

    Args:
        features: (n, D) of the set, finite.
        centred: which kind.
        dim: keep at most so many dimensions, those of the largest eigenvalues; None for all that there are.

    Raises:
        ConfigError: dim is below 1.
        DataError: there are fewer than 2 images, or all of them are the same.
    """
    num, width = features.shape
    if dim is not None and dim < 1:
        raise ConfigError(f"whitening to {dim} dimensions cannot be; allowed: 1 to {width}")
    if num < 2:
        raise DataError(f"whitening cannot be learned from {num} images; thousands are needed to be of use")
    mean = features.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(_second_moment(features, mean if centred else np.zeros(width)))
    floor = _FLOOR * values[-1]
    # Rounding alone leaves equal images about this much variance.
    if not values[-1] > np.finfo(np.float32).eps ** 2 * max(1.0, float(mean @ mean)):
        raise DataError(f"the {num} whitening images all have the same features; the network may have collapsed")
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = int(np.count_nonzero(values > floor)) if centred else width
    kept = min(kept, num - 1 if centred else width, width if dim is None else dim)
    scales = np.maximum(values[:kept], floor) ** -0.5
    return Whitening(mean, vectors[:, :kept] * scales, num)


def _second_moment(features: NDArray[np.float32], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D, D) mean of (x - mean)(x - mean)ᵀ."""
    total = np.zeros((features.shape[1], features.shape[1]))
    for start in range(0, len(features), _CHUNK_ROWS):
        rows = features[start : start + _CHUNK_ROWS] - mean
        total += rows.T @ rows
    return total / len(features)
