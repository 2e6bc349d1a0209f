"""Which patches of two views show the same place of the image.

Both matchings treat rows and columns apart, because boxes are upright: a patch has a partner when its row and its
column have one. So a whole batch with all its pairs of views takes a handful of operations on (..., H) and (..., W).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from patchssl.errors import ConfigError
from patchssl.structs import Boxes, PatchMatch

Grid = tuple[int, int]
Matching = Callable[[Boxes, Grid, Boxes, Grid], PatchMatch]


def nearest(student: Boxes, student_grid: Grid, teacher: Boxes, teacher_grid: Grid) -> PatchMatch:
    """Match each student patch with the teacher patch that contains its centre.

    A student patch whose centre lies outside the teacher's half-open box has no partner. The centres of partners are
    at most half a teacher patch apart along either axis.

    Args:
        student: boxes of the student's views, leading dimensions (...), for instance (B, S, 1).
        student_grid: (H, W) patches of a student view.
        teacher: boxes of the teacher's views in the same images, leading dimensions that broadcast against the
            student's, for instance (B, 1, T).
        teacher_grid: (H, W) patches of a teacher view.

    Returns:
        Index and mask (..., N_student), leading dimensions broadcast.
    """
    flips = torch.broadcast_tensors(student.flipped, teacher.flipped)
    shape, num_cells = flips[0].shape, teacher_grid[0] * teacher_grid[1]
    our_flip, their_flip = (flip.reshape(-1) for flip in flips)  # (P,)
    # The P pairs of views come last on the way: loops over a handful of patches would cost more than what they do.
    ours, theirs = (
        boxes.corners.movedim(-1, 0).expand(4, *shape).reshape(2, 2, 1, -1) for boxes in (student, teacher)
    )  # (start and length, y and x, 1, P)
    our_grid, their_grid = _per_axis(student_grid, ours), _per_axis(teacher_grid, ours)

    # Both axes go through at once, as many parts of them as the longer has.
    parts = torch.arange(0.5, max(student_grid), dtype=ours.dtype, device=ours.device)[:, None]  # (parts, 1)
    our_start, our_length = ours
    start, length = theirs
    centre = (parts * (our_length / our_grid)).add_(our_start)  # (2, parts, P)
    outside = (centre < start).logical_or_(centre >= start + length)
    # Rounding can lift a centre just below the box's far edge to the edge itself, hence the largest.
    cell = centre.sub_(start).mul_(their_grid / length).clamp_(max=their_grid - 1).int()
    row, col = cell
    col.sub_((teacher_grid[1] - 1) * their_flip).abs_()
    row.mul_(teacher_grid[1])
    # So far below 0 that the sum of row and column stays negative unless both are inside.
    cell.masked_fill_(outside, -num_cells)
    if student_grid[0] != student_grid[1]:
        row, col = row[: student_grid[0]], col[: student_grid[1]]
    col = torch.where(our_flip, col.flip(0), col)

    number = row.T.long()[:, :, None] + col.T.long()[:, None]  # (P, H, W), below 0 for no partner
    shape = (*shape, student_grid[0] * student_grid[1])
    return PatchMatch(number.clamp(min=0).reshape(shape), (number >= 0).reshape(shape))


def _per_axis(grid: Grid, like: Tensor) -> Tensor | int:
    """The patches along y and x, to be broadcast with (2, parts, P); a plain number where they are equal."""
    return grid[0] if grid[0] == grid[1] else like.new_tensor(grid)[:, None, None]


def authors(student: Boxes, student_grid: Grid, teacher: Boxes, teacher_grid: Grid) -> PatchMatch:
    """Match patches as the authors of PW-Self do (arXiv 2310.18651, their released code).

    The overlap of both boxes is rounded to whole patches of each view, start and length apart; of the view that has
    more of them along an axis, evenly spaced ones are kept. Partners may be more than a patch apart or not overlap at
    all, and slices that leave the grid are cut off or wrap as numpy's do: use it to compare with their results, which
    they have for square grids only.

    Args:
        student: boxes of the student's views, leading dimensions (...).
        student_grid: (H, W) patches of a student view, H = W.
        teacher: boxes of the teacher's views, leading dimensions that broadcast against the student's.
        teacher_grid: (H, W) patches of a teacher view, H = W.

    Returns:
        Index and mask (..., N_student), leading dimensions broadcast.

    Raises:
        ConfigError: a grid is not square.
    """
    _refuse_other_than_square(student=student_grid, teacher=teacher_grid)
    axes = []
    overlaps = torch.tensor(True, device=student.corners.device)
    for axis in (0, 1):
        starts = [boxes.corners[..., axis] for boxes in (student, teacher)]
        lengths = [boxes.corners[..., axis + 2] for boxes in (student, teacher)]
        low = starts[0].maximum(starts[1])
        high = (starts[0] + lengths[0]).minimum(starts[1] + lengths[1])
        overlaps = overlaps & (low < high)
        slices = []
        for boxes, start, length, num in zip(
            (student, teacher), starts, lengths, (student_grid[axis], teacher_grid[axis]), strict=True
        ):
            first, count = num * ((low - start) / length), num * ((high - low) / length)
            mirrored = boxes.flipped if axis == 1 else torch.zeros_like(boxes.flipped)
            slices.append(_slice(first.round().long(), count.round().long(), mirrored, num))
        axes.append(_pair(slices[0], slices[1], student_grid[axis], teacher_grid[axis]))
    rows, cols = (partner[..., :, None] if axis == 0 else partner[..., None, :] for axis, partner in enumerate(axes))
    mask = ((rows >= 0) & (cols >= 0) & overlaps[..., None, None]).flatten(-2)
    return PatchMatch((rows * teacher_grid[1] + cols).flatten(-2).mul_(mask), mask)


MATCHINGS: dict[str, Matching] = {"nearest": nearest, "authors": authors}


def _refuse_other_than_square(**grids: Grid) -> None:
    for whose, grid in grids.items():
        if grid[0] != grid[1]:
            raise ConfigError(
                f"matching: authors takes square grids, the {whose}'s is {grid[0]} x {grid[1]} patches; "
                "make its views square or take matching: nearest"
            )


def _slice(first: Tensor, count: Tensor, mirrored: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take `range(num)[first : first + count]` with Python's rules, from the far end where mirrored.

    Returns:
        Three tensors (...): the first patch in source order, the step to the next (1 or -1), how many there are.
    """
    first = torch.where(mirrored, num - (first + count), first)
    begin, end = (torch.where(bound < 0, bound + num, bound).clamp(0, num) for bound in (first, first + count))
    return torch.where(mirrored, end - 1, begin), torch.where(mirrored, -1, 1), (end - begin).clamp(min=0)


def _pair(
    student: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, Tensor, Tensor], num_student: int, num_teacher: int
) -> Tensor:
    """Pair two slices of an axis, thinning out the longer: the teacher's partner (..., num_student), or -1."""
    count = student[2].minimum(teacher[2])[..., None]  # (..., 1)
    places = torch.arange(min(num_student, num_teacher), device=count.device)
    cells = []
    for begin, step, length in (student, teacher):
        kept = torch.where(length[..., None] > count, _spread(places, length[..., None], count), places)
        cells.append(begin[..., None] + step[..., None] * kept)
    at = torch.where(places < count, cells[0], num_student)  # places beyond the end go to a column that is dropped
    partner = at.new_full((*at.shape[:-1], num_student + 1), -1)
    return partner.scatter(-1, at, cells[1].expand_as(at))[..., :-1]


def _spread(places: Tensor, num: Tensor, kept: Tensor) -> Tensor:
    """Evenly spaced ones of `num` things, floor(linspace(0, num - 1, kept)), in numpy's order of float64 operations."""
    step = (num - 1).double() / (kept - 1).clamp(min=1)
    return torch.where((places == kept - 1) & (kept > 1), num - 1, (places * step).floor().long())
