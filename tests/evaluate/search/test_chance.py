"""Closed forms of chance against every order there is."""

from itertools import combinations

import numpy as np
import pytest

from patchssl.evaluate.search.chance import average_precision_by_chance, r_precision_by_chance, recall_by_chance
from patchssl.evaluate.search.ranking import average_precision, r_precision, recall_at

CASES = [(num, total) for total in range(1, 8) for num in range(1, total + 1)]


@pytest.mark.parametrize(("num", "total"), CASES)
def test_every_order(num: int, total: int) -> None:
    # Every set of places is equally likely.
    orders = list(combinations(range(total), num))
    assert average_precision_by_chance(num, total) == pytest.approx(
        np.mean([average_precision(ranks, num) for ranks in orders]), abs=1e-12
    )
    for cutoff in (1, 2, 3, 100):
        expected = np.mean([average_precision(ranks, num, cutoff=cutoff) for ranks in orders])
        assert average_precision_by_chance(num, total, cutoff=cutoff) == pytest.approx(expected, abs=1e-12)
    for k in range(1, total + 1):
        expected = np.mean([recall_at(ranks, k) for ranks in orders])
        assert recall_by_chance(num, total, k) == pytest.approx(expected, abs=1e-12)
    expected = np.mean([r_precision(ranks, num) for ranks in orders])
    assert r_precision_by_chance(num, total) == pytest.approx(expected, abs=1e-12)


def test_by_hand() -> None:
    assert average_precision_by_chance(1, 2) == pytest.approx((1 + 1 / 2) / 2)
    assert recall_by_chance(1, 4, 2) == pytest.approx(1 / 2)
    assert recall_by_chance(2, 4, 2) == pytest.approx(1 - 1 / 6)
    assert recall_by_chance(0, 4, 2) == 0.0
    assert average_precision_by_chance(1, 1) == 1.0


def test_large_sets_are_no_trouble() -> None:
    assert recall_by_chance(5, 60_000, 100) == pytest.approx(1 - (1 - 5 / 60_000) ** 100, rel=1e-3)
    assert average_precision_by_chance(6000, 60_000) == pytest.approx(0.1, rel=2e-3)
    assert recall_by_chance(59_999, 60_000, 2) == 1.0
