import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchssl.data.balanced import balanced_counts, balanced_rows


@pytest.mark.parametrize(
    ("available", "num", "counts", "left"),
    [
        ([5, 5, 5], 6, [2, 2, 2], 0),
        ([5, 5, 5], 8, [2, 2, 2], 2),
        # A class of one gives it, and the others share what it lacks.
        ([1, 9, 9], 7, [1, 3, 3], 0),
        ([1, 2, 9], 10, [1, 2, 7], 0),
        ([1, 2, 9], 100, [1, 2, 9], 0),
        ([4, 4], 1, [0, 0], 1),
        ([4, 0, 4], 3, [1, 0, 1], 1),
        ([4, 4], 0, [0, 0], 0),
    ],
)
def test_shares_by_hand(available: list[int], num: int, counts: list[int], left: int) -> None:
    found, rest = balanced_counts(np.array(available), num)
    assert (found.tolist(), rest) == (counts, left)


def one_by_one(available: list[int], num: int) -> list[int]:
    """The slow way: every class in turn takes one image, until there are enough."""
    taken = [0] * len(available)
    while True:
        able = [number for number, count in enumerate(available) if taken[number] < count]
        if not able or sum(taken) + len(able) > num:
            return taken
        for number in able:
            taken[number] += 1


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(0, 60))
def test_shares_equal_those_taken_one_by_one(available: list[int], num: int) -> None:
    found, left = balanced_counts(np.array(available), num)
    assert found.tolist() == one_by_one(available, num)
    assert int(found.sum()) + left == min(num, sum(available))


@given(st.lists(st.integers(-2, 3), min_size=1, max_size=40), st.integers(1, 45), st.integers(0, 3))
def test_rows_are_of_all_classes_alike_and_follow_from_the_seed(labels: list[int], num: int, seed: int) -> None:
    given_labels = np.array(labels)
    rows = balanced_rows(given_labels, num, seed=seed, stream=0)
    assert rows.tolist() == balanced_rows(given_labels, num, seed=seed, stream=0).tolist()
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == min(num, len(labels))
    classes, available = np.unique(given_labels, return_counts=True)
    taken = np.array([np.count_nonzero(given_labels[rows] == label) for label in classes])
    short = taken < available
    assert not short.any() or taken.max() - taken[short].min() <= 1


def test_other_seeds_and_streams_draw_other_images() -> None:
    labels = np.arange(1000) % 10
    drawn = {balanced_rows(labels, 50, seed=seed, stream=stream).tobytes() for seed in range(3) for stream in range(2)}
    assert len(drawn) == 6


def test_every_image_and_every_class_has_the_same_chance() -> None:
    labels = np.array([0] * 6 + [1] * 6 + [2] * 6)
    counts = np.zeros(18)
    for seed in range(1200):
        counts[balanced_rows(labels, 4, seed=seed, stream=0)] += 1
    # 4 of 18, in 1200 draws: 267 each, with a deviation of 14.
    assert counts.min() > 267 - 5 * 14.4
    assert counts.max() < 267 + 5 * 14.4
