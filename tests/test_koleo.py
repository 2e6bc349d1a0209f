"""KoLeo: by hand, against a slow implementation, and what it promises."""

import math

import pytest
import torch
from torch import Tensor

from patchssl.koleo import koleo


def random_features(num: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(features: Tensor) -> float:
    """Distance by distance, in Python's floats."""
    rows = [[value / math.dist(row, [0] * len(row)) for value in row] for row in features.tolist()]
    nearest = [
        min(math.dist(row, other) for place, other in enumerate(rows) if place != own) for own, row in enumerate(rows)
    ]
    return -sum(math.log(distance) for distance in nearest) / len(rows)


@pytest.mark.parametrize(
    ("features", "distances"),
    [
        # A right angle, of whatever length.
        ([[1, 0], [0, 1]], [math.sqrt(2)] * 2),
        ([[5, 0], [0, 0.1]], [math.sqrt(2)] * 2),
        ([[1, 0], [-1, 0]], [2, 2]),
        # 60 degrees between the first two, 90 to 150 to the third.
        ([[1, 0], [0.5, math.sqrt(0.75)], [0, -1]], [1, 1, math.sqrt(2)]),
    ],
)
def test_by_hand(features: list[list[float]], distances: list[float]) -> None:
    expected = -sum(math.log(distance) for distance in distances) / len(distances)
    assert float(koleo(torch.tensor(features))) == pytest.approx(expected, abs=1e-6)


def test_gradient_by_hand() -> None:
    """At a right angle the distance is sqrt(2 - 2 cos a), of which minus the logarithm falls by 1/2 for each radian."""
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    koleo(features).backward()
    # Each moves away from the other along the circle; what is twice as long turns half as fast.
    torch.testing.assert_close(features.grad, torch.tensor([[0.0, 0.5], [0.25, 0.0]]))


@pytest.mark.parametrize(("num", "width"), [(2, 3), (7, 2), (40, 16)])
def test_equals_the_slow_implementation(num: int, width: int) -> None:
    features = random_features(num, width)
    assert float(koleo(features)) == pytest.approx(slow(features), abs=1e-6)
    assert float(koleo(features.float())) == pytest.approx(slow(features), abs=1e-5)


def test_gradient_equals_numerical_differences() -> None:
    torch.autograd.gradcheck(koleo, random_features(5, 3, seed=1).requires_grad_())


def test_equal_features_are_finite_and_so_is_their_gradient() -> None:
    features = torch.ones(4, 8, requires_grad=True)
    loss = koleo(features)
    loss.backward()
    assert features.grad is not None
    assert loss.isfinite()
    assert loss > 10  # as far from spread as can be
    assert features.grad.isfinite().all()


def test_features_of_length_0_are_finite() -> None:
    features = torch.zeros(3, 4, requires_grad=True)
    loss = koleo(features)
    loss.backward()
    assert features.grad is not None
    assert loss.isfinite()
    assert features.grad.isfinite().all()


def test_order_and_length_do_not_matter() -> None:
    features = random_features(30, 8, seed=2)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    lengths = torch.rand(30, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    torch.testing.assert_close(koleo(features[order]), koleo(features))
    torch.testing.assert_close(koleo(features * lengths), koleo(features))


def test_descending_spreads_features_apart() -> None:
    """Four points close together end evenly on the circle: distances of sqrt(2)."""
    angles = torch.tensor([0.0, 0.1, 0.25, 0.45], dtype=torch.float64, requires_grad=True)
    for _ in range(500):
        (gradient,) = torch.autograd.grad(koleo(torch.stack((angles.cos(), angles.sin()), dim=1)), angles)
        angles = (angles - 0.02 * gradient).detach().requires_grad_()
    loss = float(koleo(torch.stack((angles.cos(), angles.sin()), dim=1)).detach())
    assert loss == pytest.approx(-math.log(math.sqrt(2)), abs=0.05)


def test_autocast_does_not_lower_its_precision() -> None:
    features = random_features(16, 32, seed=3).float()
    expected = koleo(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(koleo(features), expected)
        lowered = koleo(features.bfloat16())
    assert lowered.dtype == torch.float32
    torch.testing.assert_close(lowered, koleo(features.bfloat16().float()))
    assert koleo(features.double()).dtype == torch.float64


@pytest.mark.parametrize("num", [0, 1])
def test_without_another_feature_there_is_no_nearest(num: int) -> None:
    with pytest.raises(ValueError, match=rf"{num} came, give 2 or more"):
        koleo(torch.ones(num, 4))
