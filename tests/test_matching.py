"""Matching patches: hand-made tables, golden pairs, slow implementations, and what geometry promises."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchssl.errors import ConfigError
from patchssl.geometry import patch_centres
from patchssl.matching import MATCHINGS, authors, nearest
from patchssl.structs import Boxes, PatchMatch

Grid = tuple[int, int]
GOLDEN = json.loads((Path(__file__).parent / "golden" / "pwself_matching.json").read_text())


def view(top: float, left: float, height: float, width: float, *, flipped: bool = False) -> Boxes:
    return Boxes(torch.tensor([top, left, height, width], dtype=torch.float64), torch.tensor(flipped))


def random_views(*shape: int, seed: int, whole: bool = False) -> Boxes:
    """Boxes in an image of 256 x 256 px, of anything from a tenth of a side to all of it."""
    generator = torch.Generator().manual_seed(seed)
    size = 256 * (0.1 + 0.9 * torch.rand(*shape, 2, generator=generator, dtype=torch.float64))
    start = (256 - size) * torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    corners = torch.cat((start, size), dim=-1)
    return Boxes(corners.floor() if whole else corners, torch.rand(*shape, generator=generator) < 0.5)


def partners(match: PatchMatch) -> dict[int, int]:
    """Teacher patch of each student patch that has one."""
    return {patch: int(match.index[patch]) for patch in match.mask.nonzero().flatten().tolist()}


def slow_nearest(student: Boxes, student_grid: Grid, teacher: Boxes, teacher_grid: Grid) -> dict[int, int]:
    """Look for the teacher patch whose area contains each centre, patch by patch."""
    top, left, height, width = (float(number) for number in teacher.corners)
    found = {}
    for patch, (y, x) in enumerate(patch_centres(student, student_grid).tolist()):
        for row in range(teacher_grid[0]):
            for col in range(teacher_grid[1]):
                shown = teacher_grid[1] - 1 - col if teacher.flipped else col
                above, before = top + height * row / teacher_grid[0], left + width * col / teacher_grid[1]
                below, behind = top + height * (row + 1) / teacher_grid[0], left + width * (col + 1) / teacher_grid[1]
                if above <= y < below and before <= x < behind:
                    found[patch] = row * teacher_grid[1] + shown
    return found


def slow_authors(student: Boxes, student_grid: Grid, teacher: Boxes, teacher_grid: Grid) -> dict[int, int]:
    """Cut both grids of numbers out by numpy's slices, one pair of views at a time."""
    boxes = [tuple(float(number) for number in boxes.corners) for boxes in (student, teacher)]
    low = [max(boxes[0][axis], boxes[1][axis]) for axis in (0, 1)]
    high = [min(boxes[0][axis] + boxes[0][axis + 2], boxes[1][axis] + boxes[1][axis + 2]) for axis in (0, 1)]
    if low[0] >= high[0] or low[1] >= high[1]:
        return {}
    cut = []
    for box, grid, flipped in zip(boxes, (student_grid, teacher_grid), (student.flipped, teacher.flipped), strict=True):
        first = [round(grid[axis] * ((low[axis] - box[axis]) / box[axis + 2])) for axis in (0, 1)]
        count = [round(grid[axis] * ((high[axis] - low[axis]) / box[axis + 2])) for axis in (0, 1)]
        if flipped:
            first[1] = grid[1] - (first[1] + count[1])
        numbers = np.arange(grid[0] * grid[1]).reshape(grid)
        numbers = numbers[first[0] : first[0] + count[0], first[1] : first[1] + count[1]]
        cut.append(np.fliplr(numbers) if flipped else numbers)
    for axis in (0, 1):
        shorter = min(numbers.shape[axis] for numbers in cut)
        for which, numbers in enumerate(cut):
            if numbers.shape[axis] > shorter:
                kept = np.floor(np.linspace(0, numbers.shape[axis] - 1, shorter)).astype(int)
                cut[which] = np.take(numbers, kept, axis=axis)
    return dict(zip(cut[0].ravel().tolist(), cut[1].ravel().tolist(), strict=True))


def test_nearest_worked_by_hand() -> None:
    """A 2 x 2 student over the right half of a 2 x 4 teacher, and half beyond it below.

    Teacher: rows at 0-10 and 10-20, columns at 0-10, 10-20, 20-30, 30-40. Student centres: y 15 and 25, x 25 and 35.
    """
    teacher, student = view(0, 0, 20, 40), view(10, 20, 20, 20)
    assert partners(nearest(student, (2, 2), teacher, (2, 4))) == {0: 6, 1: 7}
    flipped = view(10, 20, 20, 20, flipped=True)
    assert partners(nearest(flipped, (2, 2), teacher, (2, 4))) == {0: 7, 1: 6}
    mirrored = view(0, 0, 20, 40, flipped=True)
    assert partners(nearest(student, (2, 2), mirrored, (2, 4))) == {0: 5, 1: 4}
    assert partners(nearest(flipped, (2, 2), mirrored, (2, 4))) == {0: 4, 1: 5}


def test_centres_on_borders_belong_to_the_later_patch_and_the_far_edge_to_none() -> None:
    student = view(0, 0, 40, 40)  # one patch, centre (20, 20)
    assert partners(nearest(student, (1, 1), view(0, 0, 40, 40), (2, 2))) == {0: 3}
    assert partners(nearest(student, (1, 1), view(0, 0, 40, 40, flipped=True), (2, 2))) == {0: 2}
    assert partners(nearest(student, (1, 1), view(20, 20, 10, 10), (2, 2))) == {0: 0}
    assert partners(nearest(student, (1, 1), view(0, 0, 20, 40), (2, 2))) == {}


def test_unmatched_patches_have_index_0() -> None:
    match = nearest(view(0, 0, 40, 40), (4, 4), view(25, 25, 10, 10), (3, 3))
    assert match.index.dtype == torch.int64
    assert match.mask.dtype == torch.bool
    assert (match.index[~match.mask] == 0).all()
    assert match.mask.sum() == 1


@pytest.mark.parametrize(
    ("student_grid", "teacher_grid"), [((14, 14), (14, 14)), ((6, 6), (14, 14)), ((5, 3), (2, 7)), ((1, 1), (1, 1))]
)
def test_nearest_equals_the_slow_implementation(student_grid: Grid, teacher_grid: Grid) -> None:
    students, teachers = random_views(12, seed=0), random_views(12, seed=1)
    match = nearest(students, student_grid, teachers, teacher_grid)
    for pair in range(12):
        expected = slow_nearest(students[pair], student_grid, teachers[pair], teacher_grid)
        assert partners(PatchMatch(match.index[pair], match.mask[pair])) == expected


@pytest.mark.parametrize(("student_grid", "teacher_grid"), [((14, 14), (14, 14)), ((6, 6), (14, 14)), ((5, 3), (2, 7))])
def test_nearest_partners_are_within_half_a_teacher_patch(student_grid: Grid, teacher_grid: Grid) -> None:
    students, teachers = random_views(100, 4, 1, seed=2), random_views(100, 1, 3, seed=3)
    match = nearest(students, student_grid, teachers, teacher_grid)
    assert match.mask.shape == (100, 4, 3, student_grid[0] * student_grid[1])
    assert match.mask.any()
    ours = patch_centres(students, student_grid).expand(*match.index.shape, 2)
    theirs = patch_centres(teachers, teacher_grid).expand(100, 4, 3, -1, 2)
    theirs = theirs.gather(-2, match.index[..., None].expand(*match.index.shape, 2))
    patch = teachers.corners[..., None, 2:] / torch.tensor(teacher_grid)
    apart = ((ours - theirs).abs() / patch)[match.mask]
    assert apart.max() <= 0.5 + 1e-9
    assert apart.max() > 0.49  # the bound is tight
    start, end = teachers.corners[..., None, :2], (teachers.corners[..., :2] + teachers.corners[..., 2:])[..., None, :]
    assert torch.equal(match.mask, ((ours >= start) & (ours < end)).all(-1))


@pytest.mark.parametrize(("name", "grid"), [("nearest", (7, 5)), ("nearest", (6, 6)), ("authors", (6, 6))])
def test_identical_views_match_themselves(name: str, grid: Grid) -> None:
    views, num_patches = random_views(200, seed=4), grid[0] * grid[1]
    match = MATCHINGS[name](views, grid, views, grid)
    assert match.mask.all()
    assert torch.equal(match.index, torch.arange(num_patches).expand(200, num_patches))


@pytest.mark.parametrize("name", MATCHINGS)
@pytest.mark.parametrize(
    "teacher", [view(0, 50, 50, 50), view(50, 0, 50, 50), view(50, 50, 9, 9)], ids=["right", "below", "corner"]
)
def test_views_that_only_touch_match_nothing(name: str, teacher: Boxes) -> None:
    assert not MATCHINGS[name](view(0, 0, 50, 50), (6, 6), teacher, (14, 14)).mask.any()


@pytest.mark.parametrize("name", MATCHINGS)
def test_no_views_match_nothing(name: str) -> None:
    match = MATCHINGS[name](random_views(0, 8, 1, seed=0), (6, 6), random_views(0, 1, 2, seed=0), (14, 14))
    assert match.index.shape == match.mask.shape == (0, 8, 2, 36)


def test_flipping_a_view_permutes_nearest_partners() -> None:
    """Mirroring a view renumbers its patches and changes nothing else; doing it twice changes nothing."""
    students, teachers, student_grid, teacher_grid = random_views(50, seed=5), random_views(50, seed=6), (4, 6), (5, 3)
    match = nearest(students, student_grid, teachers, teacher_grid)
    mirrored = nearest(Boxes(students.corners, ~students.flipped), student_grid, teachers, teacher_grid)
    assert torch.equal(mirrored.mask, match.mask.unflatten(1, student_grid).flip(2).flatten(1))
    assert torch.equal(mirrored.index, match.index.unflatten(1, student_grid).flip(2).flatten(1))

    both = nearest(
        Boxes(students.corners, ~students.flipped),
        student_grid,
        Boxes(teachers.corners, ~teachers.flipped),
        teacher_grid,
    )
    renumbered = torch.arange(15).unflatten(0, teacher_grid).flip(1).flatten()
    assert torch.equal(both.mask, mirrored.mask)
    assert torch.equal(both.index[both.mask], renumbered[mirrored.index[mirrored.mask]])


def test_edge_rounding_stays_in_the_grid() -> None:
    """Boxes whose far edge is not representable, met by centres just below it."""
    start = torch.rand(20000, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 1e3
    length = torch.rand(20000, generator=torch.Generator().manual_seed(8), dtype=torch.float64) * 10 + 1e-3
    edge = torch.nextafter(start + length, start)
    zero = torch.zeros_like(start)
    students = Boxes(torch.stack((edge, edge, zero, zero), dim=1), torch.zeros(20000, dtype=torch.bool))
    teachers = Boxes(torch.stack((start, start, length, length), dim=1), torch.zeros(20000, dtype=torch.bool))
    match = nearest(students, (1, 1), teachers, (14, 14))
    assert match.mask.all()
    assert (match.index == 14 * 14 - 1).all()


@pytest.mark.parametrize(("student", "teacher"), [("a", "b"), ("b", "a")])
def test_authors_gives_the_golden_pairs(student: str, teacher: str) -> None:
    """All 400 pairs of views in one call per pair of grids; token 0 is CLS and patches count from 1 there."""

    def boxes(cases: list[dict[str, Any]], side: str) -> Boxes:
        corners = torch.tensor([case[f"box_{side}"] for case in cases], dtype=torch.float64)
        return Boxes(corners, torch.tensor([case[f"flip_{side}"] for case in cases]))

    checked = 0
    for grids in {(case[f"grid_{student}"], case[f"grid_{teacher}"]) for case in GOLDEN}:
        cases = [case for case in GOLDEN if (case[f"grid_{student}"], case[f"grid_{teacher}"]) == grids]
        match = authors(boxes(cases, student), (grids[0],) * 2, boxes(cases, teacher), (grids[1],) * 2)
        for row, case in enumerate(cases):
            tokens = zip(case[f"tokens_{student}"][1:], case[f"tokens_{teacher}"][1:], strict=True)
            expected = {ours - 1: theirs - 1 for ours, theirs in tokens}
            assert partners(PatchMatch(match.index[row], match.mask[row])) == expected
            checked += 1
    assert checked == 400


@pytest.mark.parametrize("whole", [True, False], ids=["whole px", "fractions"])
@pytest.mark.parametrize(
    ("student_grid", "teacher_grid"),
    [((14, 14), (14, 14)), ((14, 14), (6, 6)), ((3, 3), (7, 7)), ((28, 28), (12, 12)), ((5, 5), (9, 9))],
)
def test_authors_equals_the_slow_implementation(student_grid: Grid, teacher_grid: Grid, whole: bool) -> None:
    """Odd grids reach the slices that leave the grid, where numpy truncates or wraps."""
    students, teachers = random_views(500, seed=9, whole=whole), random_views(500, seed=10, whole=whole)
    match = authors(students, student_grid, teachers, teacher_grid)
    for pair in range(500):
        expected = slow_authors(students[pair], student_grid, teachers[pair], teacher_grid)
        assert partners(PatchMatch(match.index[pair], match.mask[pair])) == expected


@pytest.mark.parametrize(
    ("left", "flipped", "columns"),
    [
        # Half a patch is cut off on both sides: 0.5 rounds to 0, and 2 of 3 patches are taken.
        (0.5, False, {0: 0, 1: 1}),
        (0.5, True, {2: 0, 1: 1}),
    ],
)
def test_authors_rounds_half_to_even(left: float, flipped: bool, columns: dict[int, int]) -> None:
    """Of 3 rows, the first and the last are kept for the teacher's 2."""
    student, teacher = view(0, 0, 1, 3, flipped=flipped), view(0, left, 1, 2)
    expected = {
        3 * row + ours: 2 * kept + theirs for kept, row in enumerate((0, 2)) for ours, theirs in columns.items()
    }
    assert partners(authors(student, (3, 3), teacher, (2, 2))) == expected


def test_authors_wraps_like_numpy_where_the_slice_begins_before_the_grid() -> None:
    """Start 1.5 rounds to 2 and length 1.5 to 2 of 3 patches: one too many, and mirrored the slice begins at -1."""
    teacher = view(0, 1.5, 1, 1.5)
    assert partners(authors(view(0, 0, 1, 3), (3, 3), teacher, (2, 2))) == {2: 0, 8: 2}
    assert partners(authors(view(0, 0, 1, 3, flipped=True), (3, 3), teacher, (2, 2))) == {}


@pytest.mark.parametrize(
    ("student_grid", "teacher_grid", "words"),
    [((5, 8), (6, 6), "the student's is 5 x 8 patches"), ((6, 6), (9, 2), "the teacher's is 9 x 2 patches")],
)
def test_authors_refuses_grids_that_are_not_square(student_grid: Grid, teacher_grid: Grid, words: str) -> None:
    views = random_views(3, seed=13)
    with pytest.raises(ConfigError, match=words):
        authors(views, student_grid, views, teacher_grid)


@pytest.mark.parametrize("name", MATCHINGS)
def test_broadcasting_equals_one_pair_at_a_time(name: str) -> None:
    students, teachers = random_views(5, 3, 1, seed=11), random_views(5, 1, 2, seed=12)
    match = MATCHINGS[name](students, (6, 6), teachers, (14, 14))
    for image in range(5):
        for student in range(3):
            for teacher in range(2):
                one = MATCHINGS[name](students[image, student, 0], (6, 6), teachers[image, 0, teacher], (14, 14))
                assert torch.equal(match.index[image, student, teacher], one.index)
                assert torch.equal(match.mask[image, student, teacher], one.mask)
