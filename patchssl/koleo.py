"""The KoLeo term, which spreads features apart."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, pairwise_distance

_EPS = 1e-8


def koleo(features: Tensor) -> Tensor:
    """Minus the mean logarithm of the distance from each feature to its nearest other one.

    The Kozachenko-Leonenko estimate of the features' entropy, negated (Sablayrolles et al., 2019), on the unit sphere
    as in DINOv2 (Oquab et al., 2023), whose 1e-8 keeps equal features finite. It is computed in at least float32,
    whatever the autocast. Which one is nearest has no gradient; the distance has one for both.

    Args:
        features: (B, D) of different images, of any length.

    Returns:
        A scalar.

    Raises:
        ValueError: fewer than two features, none of which has a nearest other one.
    """
    if len(features) < 2:
        raise ValueError(
            f"KoLeo compares the features of a batch with each other: {len(features)} came, give 2 or more"
        )
    with torch.autocast(features.device.type, enabled=False):
        points = normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1, eps=_EPS)  # (B, D)
        with torch.no_grad():
            nearest = (points @ points.T).fill_diagonal_(-torch.inf).argmax(dim=1)  # (B,)
        distances = pairwise_distance(points, points[nearest], eps=_EPS)  # (B,)
        return -(distances + _EPS).log().mean()
