"""Pairs above a threshold: by hand, against all pairs one by one, and whatever the blocks."""

import numpy as np
import pytest
from numpy.typing import NDArray

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.search.near_duplicates import SimilarPairs, similar_pairs


def as_list(pairs: SimilarPairs) -> list[tuple[int, int]]:
    return list(zip(pairs.one.tolist(), pairs.other.tolist(), strict=True))


def crowded(num: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    """Features around a few centres, so that many are alike."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, dim))
    return (centres[rng.integers(5, size=num)] + 0.3 * rng.normal(size=(num, dim))).astype(np.float32)


def one_by_one(features: NDArray[np.float32], threshold: float) -> dict[tuple[int, int], float]:
    found = {}
    rows = features.astype(np.float64)
    for one in range(len(rows)):
        for other in range(one + 1, len(rows)):
            cosine = float(rows[one] @ rows[other] / np.sqrt((rows[one] @ rows[one]) * (rows[other] @ rows[other])))
            if cosine >= threshold:
                found[one, other] = cosine
    return found


def test_by_hand() -> None:
    # (1, 0), its triple, 60 degrees from both, the opposite, and nothing.
    features = np.array([[1, 0], [3, 0], [0.5, np.sqrt(0.75)], [-1, 0], [0, 0]], np.float32)
    pairs = similar_pairs(features, 0.49)
    assert as_list(pairs) == [(0, 1), (0, 2), (1, 2)]
    np.testing.assert_allclose(pairs.cosines, [1, 0.5, 0.5], atol=1e-6)
    assert (pairs.num_found, pairs.above) == (3, None)
    assert as_list(similar_pairs(features, 0.51)) == [(0, 1)]
    assert as_list(similar_pairs(features, 1.0)) == [(0, 1)]


@pytest.mark.parametrize("block_rows", [1, 7, 40, 1000])
def test_all_pairs_one_by_one(block_rows: int) -> None:
    features = crowded(40, 6)
    expected = one_by_one(features, 0.9)
    done: list[int] = []
    pairs = similar_pairs(features, 0.9, block_rows=block_rows, on_rows=done.append)
    assert sorted(as_list(pairs)) == sorted(expected)
    np.testing.assert_allclose(pairs.cosines, [expected[pair] for pair in as_list(pairs)], atol=1e-6)
    assert (np.diff(pairs.cosines) <= 0).all()
    assert len(pairs) == pairs.num_found > 40
    assert sum(done) == 40


def test_of_too_many_the_most_similar_are_kept_whatever_the_blocks() -> None:
    features = crowded(60, 4)
    whole = similar_pairs(features, 0.5)
    kept = [similar_pairs(features, 0.5, most_pairs=50, block_rows=rows) for rows in (5, 60)]
    for pairs in kept:
        assert pairs.num_found == whole.num_found > 300
        assert as_list(pairs) == as_list(whole)[: len(pairs)]
        assert pairs.above is not None
        assert len(pairs) == int((whole.cosines > pairs.above).sum())
        assert 40 < len(pairs) <= 50


def test_where_all_are_alike_nothing_is_told_apart() -> None:
    pairs = similar_pairs(np.ones((50, 3), np.float32), 0.9, most_pairs=10, block_rows=8)
    assert pairs.num_found == 50 * 49 // 2
    assert len(pairs) == 0
    assert pairs.above == pytest.approx(1)


@pytest.mark.parametrize("num", [0, 1])
def test_no_pairs(num: int) -> None:
    pairs = similar_pairs(np.ones((num, 3), np.float32), 0.5)
    assert (len(pairs), pairs.num_found, pairs.above) == (0, 0, None)


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan")])
def test_thresholds_that_mean_nothing(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        similar_pairs(np.ones((2, 3), np.float32), threshold)


def test_broken_features_are_refused() -> None:
    features = np.ones((5, 3), np.float32)
    features[3, 1] = np.nan
    with pytest.raises(DataError, match="row 3"):
        similar_pairs(features, 0.5, block_rows=2)
