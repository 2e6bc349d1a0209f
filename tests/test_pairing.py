"""Pairs of rows: by hand, against loops, and their sums."""

import itertools

import pytest
import torch

from patchssl.pairing import cls_pairs, count_per_view_pair, flat_weights, mean_weights, patch_pairs
from patchssl.structs import Pairs, PatchMatch


def test_class_tokens_of_one_image_by_hand() -> None:
    # Views 0 and 1 are the teacher's, view 2 is local.
    pairs = cls_pairs(1, 2, [2, 1])
    assert sorted(zip(pairs.student.tolist(), pairs.teacher.tolist(), strict=True)) == [(0, 1), (1, 0), (2, 0), (2, 1)]


@pytest.mark.parametrize(("num_images", "teachers", "groups"), [(3, 2, [2, 8]), (2, 2, [2]), (4, 3, [3, 1])])
def test_class_tokens_against_loops(num_images: int, teachers: int, groups: list[int]) -> None:
    expected, first_row, first_view = set(), 0, 0
    for views in groups:
        for image, view, teacher in itertools.product(range(num_images), range(views), range(teachers)):
            if first_view + view != teacher:
                row = first_row + image * views + view
                expected.add((row, image * teachers + teacher, (first_view + view) * teachers + teacher))
        first_row, first_view = first_row + num_images * views, first_view + views
    pairs = cls_pairs(num_images, teachers, groups)
    found = list(zip(pairs.student.tolist(), pairs.teacher.tolist(), pairs.view_pair.tolist(), strict=True))
    assert len(found) == len(set(found)) == num_images * teachers * (sum(groups) - 1)
    assert set(found) == expected


def random_matches(seed: int, density: float) -> list[PatchMatch]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 2, 2, 5), (3, 4, 2, 3)]
    return [
        PatchMatch(torch.randint(5, shape, generator=generator), torch.rand(shape, generator=generator) < density)
        for shape in shapes
    ]


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_patches_against_loops(density: float) -> None:
    matches = random_matches(3, density)
    kept, pairs = patch_pairs(matches, num_teacher_patches=5)
    rows = [(group, int(row)) for group, chosen in enumerate(kept) for row in chosen]
    found = {
        (*rows[s], t, v)
        for s, t, v in zip(pairs.student.tolist(), pairs.teacher.tolist(), pairs.view_pair.tolist(), strict=True)
    }
    expected = set()
    for group, match in enumerate(matches):
        _, views, teachers, patches = match.mask.shape
        for image, view, teacher, patch in itertools.product(*map(range, match.mask.shape)):
            if match.mask[image, view, teacher, patch] and (group or view != teacher):
                row = (image * views + view) * patches + patch
                partner = (image * teachers + teacher) * 5 + int(match.index[image, view, teacher, patch])
                expected.add((group, row, partner, (2 * group + view) * 2 + teacher))
    assert found == expected
    assert len(pairs) == len(expected)
    # Every kept row is needed.
    assert set(pairs.student.tolist()) == set(range(len(rows)))


def test_weights_sum_to_what_they_should() -> None:
    pairs = cls_pairs(3, 2, [2, 4])
    assert float(mean_weights(pairs, len(pairs)).sum()) == pytest.approx(1)
    assert float(mean_weights(pairs, 4 * len(pairs)).sum()) == pytest.approx(0.25)
    assert len(mean_weights(Pairs(*[torch.zeros(0, dtype=torch.int64)] * 3), 0)) == 0


def test_flat_weights_by_hand() -> None:
    # Two pairs of views of one image: one with a single token, one with CLS and three patches.
    cls = Pairs(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1, 2]))
    patch = Pairs(torch.arange(3), torch.arange(3), torch.tensor([2, 2, 2]))
    counts = count_per_view_pair(cls, 4) + count_per_view_pair(patch, 4)
    assert counts.tolist() == [0, 1, 4, 0]
    cls_weights, patch_weights = flat_weights(cls, counts), flat_weights(patch, counts)
    assert cls_weights.tolist() == [0.5, 0.125]
    assert patch_weights.tolist() == [0.125] * 3
