"""Chunks of pairs: by hand, and every pair exactly once whatever the size."""

import pytest
import torch
from torch import Tensor

from patchssl.chunks import Chunk, cut
from patchssl.structs import Pairs


def pairs_of(students: list[int], teachers: list[int]) -> Pairs:
    return Pairs(torch.tensor(students), torch.tensor(teachers), torch.zeros(len(students), dtype=torch.int64))


def as_matrix(chunks: list[Chunk], num_students: int, num_teachers: int) -> Tensor:
    """The weight of each pair of a student and a teacher row."""
    found = torch.zeros(num_students, num_teachers)
    for chunk in chunks:
        for layer in chunk.layers:
            num = len(layer.teacher)
            places = chunk.student[:num], chunk.teacher[layer.teacher]
            found.index_put_(places, layer.share * chunk.weight[:num], accumulate=True)
    return found


def test_two_images_by_hand() -> None:
    # Rows 0 and 1 belong to one image, 5 and 3 to the other; row 5 has two partners.
    pairs = pairs_of([5, 0, 1, 5, 3], [7, 2, 2, 6, 6])
    weights = torch.tensor([1.0, 2.0, 3.0, 3.0, 5.0])
    first, second = cut(pairs, weights, max_rows=4)
    assert first.student.tolist() == [0, 1]
    assert first.teacher.tolist() == [2]
    assert first.weight.tolist() == [2, 3]
    assert [layer.teacher.tolist() for layer in first.layers] == [[0, 0]]
    assert second.student.tolist() == [5, 3]
    assert second.teacher.tolist() == [6, 7]
    assert second.weight.tolist() == [4, 5]
    assert [layer.teacher.tolist() for layer in second.layers] == [[1, 0], [0]]
    assert [layer.share.tolist() for layer in second.layers] == [[0.25, 1.0], [0.75]]
    (whole,) = cut(pairs, weights, max_rows=7)
    assert whole.student.tolist() == [5, 0, 1, 3]


def test_connected_rows_are_cut_where_they_are_too_many() -> None:
    chunks = cut(pairs_of(list(range(10)), [0] * 10), torch.ones(10), max_rows=4)
    assert [len(chunk.student) for chunk in chunks] == [3, 3, 4]
    assert [chunk.teacher.tolist() for chunk in chunks] == [[0]] * 3


@pytest.mark.parametrize("max_rows", [1, 3, 10, 1000])
def test_every_pair_stands_in_one_chunk_with_its_weight(max_rows: int) -> None:
    generator = torch.Generator().manual_seed(max_rows)
    for _ in range(100):
        num_students, num_teachers, num = torch.randint(1, 30, (3,), generator=generator).tolist()
        students = torch.randint(num_students, (num,), generator=generator)
        teachers = torch.randint(num_teachers, (num,), generator=generator)
        weights = torch.rand(num, generator=generator) + 0.1
        chunks = cut(Pairs(students, teachers, torch.zeros_like(students)), weights, max_rows)
        expected = torch.zeros(num_students, num_teachers).index_put_((students, teachers), weights, accumulate=True)
        torch.testing.assert_close(as_matrix(chunks, num_students, num_teachers), expected)
        rows = torch.cat([chunk.student for chunk in chunks])
        assert sorted(rows.tolist()) == students.unique().tolist()
        for chunk in chunks:
            assert len(chunk.teacher.unique()) == len(chunk.teacher)
            counts = [len(layer.teacher) for layer in chunk.layers]
            assert counts == sorted(counts, reverse=True)
            assert counts[0] == len(chunk.student)


def test_images_are_not_cut_while_they_fit() -> None:
    # Eight images of 6 student and 4 teacher rows: two fit into 20 rows.
    image = torch.arange(8).repeat_interleave(6)
    students = torch.arange(48)
    teachers = image * 4 + torch.arange(48) % 4
    chunks = cut(Pairs(students, teachers, torch.zeros_like(students)), torch.ones(48), max_rows=20)
    assert [len(chunk.student) for chunk in chunks] == [12] * 4
    assert sum(len(chunk.teacher) for chunk in chunks) == 32


def test_no_pairs_make_no_chunk() -> None:
    assert cut(pairs_of([], []), torch.ones(0), 5) == []
