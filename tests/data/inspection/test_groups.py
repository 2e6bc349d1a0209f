"""Equal digests and connected nodes, against slow searches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchssl.data.inspection.groups import components, first_equal, groups_of


def test_by_hand() -> None:
    digests = np.array([[1, 2], [2, 1], [1, 2], [9, 9], [2, 1], [1, 2], [2, 2]], np.uint64)
    first = first_equal(digests, np.array([0, 1, 2, 3, 4, 5, 6]))
    assert first.tolist() == [0, 1, 0, 3, 1, 0, 6]
    groups = groups_of(first)
    assert [group.tolist() for group in groups] == [[0, 2, 5], [1, 4]]
    assert (len(groups), groups.num_members, groups.num_superfluous) == (2, 5, 3)
    # One that does not count equals none, and the next is the first of the others.
    assert first_equal(digests, np.array([1, 2, 3, 4, 5, 6])).tolist() == [0, 1, 2, 3, 1, 2, 6]


@pytest.mark.parametrize("num", [0, 1, 3])
def test_without_equals_there_are_no_groups(num: int) -> None:
    first = first_equal(np.arange(2 * num, dtype=np.uint64).reshape(num, 2), np.arange(num))
    assert first.tolist() == list(range(num))
    assert list(groups_of(first)) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=30))
def test_first_equal_one_by_one(images: list[tuple[int, int, bool]]) -> None:
    digests = np.array([[one, other] for one, other, _ in images], np.uint64).reshape(-1, 2)
    chosen = np.array([place for place, (*_, counts) in enumerate(images) if counts], np.int64)
    expected = [
        next(before for before in range(place + 1) if images[before] == image) if image[2] else place
        for place, image in enumerate(images)
    ]
    first = first_equal(digests, chosen)
    assert first.tolist() == expected
    members = [group.tolist() for group in groups_of(first)]
    assert members == [
        equal for lead in dict.fromkeys(expected) if len(equal := [i for i, e in enumerate(expected) if e == lead]) > 1
    ]


@given(st.integers(1, 25), st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), max_size=40))
def test_components_by_walking(num: int, pairs: list[tuple[int, int]]) -> None:
    edges = [(one % num, other % num) for one, other in pairs]
    near: dict[int, set[int]] = {node: {node} for node in range(num)}
    for one, other in edges:
        near[one].add(other)
        near[other].add(one)
    expected = []
    for node in range(num):
        reached, front = {node}, {node}
        while front:
            front = {after for before in front for after in near[before]} - reached
            reached |= front
        expected.append(min(reached))
    ends = np.array(edges, np.int64).reshape(-1, 2)
    assert components(num, ends[:, 0], ends[:, 1]).tolist() == expected


def test_a_long_chain_in_any_order() -> None:
    order = np.random.default_rng(0).permutation(5000)
    assert not components(5000, order[:-1], order[1:]).any()
