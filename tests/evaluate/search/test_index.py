import logging

import numpy as np
import pytest

from patchssl.evaluate.search.index import CosineIndex, normalise_rows


def unit_axes(rows: list[int], dim: int = 4) -> np.ndarray:
    """Rows that are unit vectors: their similarities are exactly 0 or 1."""
    return np.eye(dim, dtype=np.float32)[rows]


def test_normalised_by_hand_and_zero_stays_zero() -> None:
    given = np.array([[3, 4], [0, 0], [0, -2], [1e-13, 0]], np.float32)
    expected = np.array([[0.6, 0.8], [0, 0], [0, -1], [0.1, 0]], np.float32)
    np.testing.assert_allclose(normalise_rows(given), expected, rtol=1e-6)
    assert given[0, 0] == 3


def test_normalising_twice_changes_nothing() -> None:
    once = normalise_rows(np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32))
    np.testing.assert_allclose(normalise_rows(once), once, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 7, 60])
def test_equals_a_full_sort(k: int) -> None:
    generator = np.random.default_rng(0)
    database, queries = generator.normal(size=(60, 8)), generator.normal(size=(25, 8))
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        database / np.linalg.norm(database, axis=1, keepdims=True)
    ).T
    similarities, rows = CosineIndex(database.astype(np.float32)).search(queries.astype(np.float32), k)
    np.testing.assert_array_equal(rows, np.argsort(-cosine, axis=1)[:, :k])
    np.testing.assert_allclose(similarities, -np.sort(-cosine, axis=1)[:, :k], atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 20, 99, 150, 260])
@pytest.mark.parametrize("num_queries", [1, 30])
def test_of_equal_similarities_the_lower_rows_are_kept_in_order(k: int, num_queries: int) -> None:
    axes = np.random.default_rng(k).integers(0, 4, 300)
    wanted = np.arange(num_queries) % 4
    similarities, rows = CosineIndex(unit_axes(axes.tolist())).search(unit_axes(wanted.tolist()), k)
    for query, axis in enumerate(wanted):
        same = (axes == axis).astype(int)
        expected = np.lexsort((np.arange(300), -same))[:k].tolist()
        assert rows[query].tolist() == expected
        assert similarities[query].tolist() == same[expected].tolist()


def test_a_collapsed_network_is_told_and_still_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("patchssl.evaluate.search.index._MIN_TIE_SEARCH", 10)
    with caplog.at_level(logging.WARNING):
        similarities, rows = CosineIndex(unit_axes([2] * 200)).search(unit_axes([2, 2, 2]), 3)
    assert "3 queries have over 48 equally similar neighbours" in caplog.text
    assert (similarities == 1).all()
    assert [len(set(found)) for found in rows.tolist()] == [3, 3, 3]


def test_k_beyond_the_rows_is_refused() -> None:
    index = CosineIndex(unit_axes([0, 1]))
    for k in (0, 3):
        with pytest.raises(ValueError, match="allowed: 1 to 2"):
            index.search(unit_axes([0]), k)
    assert index.search(unit_axes([]), 2)[1].shape == (0, 2)
