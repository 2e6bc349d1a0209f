"""Pairs of rows cut into chunks, so that the logits of a few rows exist at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from patchssl.structs import Pairs


@dataclass(frozen=True, slots=True)
class Layer:
    """The j-th partners of those rows of a chunk that have so many: its first n rows.

    Attributes:
        teacher: (n,) int64 places among the chunk's teacher rows.
        share: (n,) share of the weight of all partners of the row.
    """

    teacher: Tensor
    share: Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some student rows with all their partners.

    Attributes:
        student: (S,) int64 rows of the student, those with most partners first.
        weight: (S,) sum of the weights of all pairs of a row.
        teacher: (T,) int64 rows of the teacher, each once.
        layers: first partners, second partners, ...
    """

    student: Tensor
    weight: Tensor
    teacher: Tensor
    layers: tuple[Layer, ...]

    def to(self, device: torch.device) -> "Chunk":
        """The same on a device."""
        student, weight, teacher = (part.to(device, non_blocking=True) for part in self._parts())
        layers = (Layer(*(p.to(device, non_blocking=True) for p in (x.teacher, x.share))) for x in self.layers)
        return Chunk(student, weight, teacher, tuple(layers))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.student, self.weight, self.teacher


def cut(pairs: Pairs, weights: Tensor, max_rows: int) -> list[Chunk]:
    """Cut pairs into chunks.

    Rows that no pair connects, as those of different images, part for free. Only where connected ones are too many by
    themselves are they cut, and then teacher rows stand in several chunks.

    Args:
        pairs: P pairs of rows, in any order.
        weights: (P,) above 0.
        max_rows: student and teacher rows of a chunk, about.
    """
    if not len(pairs):
        return []
    student_rows, student_of_pair = pairs.student.unique(return_inverse=True)
    # In the order of their first partners, connected rows stand together.
    lowest = _reduced(student_of_pair, pairs.teacher, len(student_rows), "amin")
    order = lowest.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    place_of_pair, by_place = place[student_of_pair].sort(stable=True)
    teacher_of_pair, weight_of_pair = pairs.teacher[by_place], weights[by_place]
    starts = _cuts(place_of_pair, teacher_of_pair, len(order), max_rows)
    ends = torch.tensor([*starts[1:], len(order)], device=order.device)
    sizes = torch.searchsorted(place_of_pair, ends).diff(prepend=ends.new_zeros(1)).tolist()
    parts = zip(starts, *(part.split(sizes) for part in (place_of_pair, teacher_of_pair, weight_of_pair)), strict=True)
    rows = student_rows[order]
    return [_chunk(rows, places - start, start, teacher, weight) for start, places, teacher, weight in parts]


def _chunk(rows: Tensor, place: Tensor, start: int, teacher: Tensor, weight: Tensor) -> Chunk:
    """A chunk of the rows that begin at start, from the (P,) places after it, teacher rows and weights of its pairs."""
    num_partners = place.bincount()
    order = num_partners.argsort(descending=True, stable=True)
    row = torch.empty_like(order)
    row[order] = torch.arange(len(order), device=order.device)
    total = torch.zeros(len(order), dtype=weight.dtype, device=weight.device).index_add_(0, place, weight)
    teacher_rows, partner = teacher.unique(return_inverse=True)
    # Pairs of a row stand together, so that their number within it is that of all pairs since its first.
    rank = torch.arange(len(place), device=place.device) - (num_partners.cumsum(0) - num_partners)[place]
    layers = []
    for number in range(int(num_partners.max())):
        chosen = (rank == number).nonzero()[:, 0]
        chosen = chosen[row[place[chosen]].argsort()]
        layers.append(Layer(partner[chosen], weight[chosen] / total[place[chosen]]))
    return Chunk(rows[start + order], total[order], teacher_rows, tuple(layers))


def _cuts(place: Tensor, teacher: Tensor, num_places: int, max_rows: int) -> list[int]:
    """The places (of student rows, in order) at which chunks begin."""
    teacher_rows, partner = teacher.unique(return_inverse=True)
    last_use = _reduced(partner, place, len(teacher_rows), "amax")
    reach = _reduced(place, last_use[partner], num_places, "amax").cummax(0).values
    begins = torch.ones(num_places, dtype=torch.bool, device=place.device)
    begins[1:] = reach[:-1] < torch.arange(1, num_places, device=place.device)
    number_of_place = begins.cumsum(0) - 1
    num_students = number_of_place.bincount()
    # A teacher row has all its partners in one connected part.
    num_teachers = number_of_place[last_use].bincount(minlength=len(num_students))
    starts, filled, place_now = [0], 0, 0
    for students, size in zip(num_students.tolist(), (num_students + num_teachers).tolist(), strict=True):
        if filled and filled + size > max_rows:
            starts.append(place_now)
            filled = 0
        num_parts = min(students, -(-size // max_rows))
        starts += [place_now + part * students // num_parts for part in range(1, num_parts)]
        filled += size
        place_now += students
    return starts


def _reduced(index: Tensor, values: Tensor, num: int, how: str) -> Tensor:
    """(num,) smallest or largest of the values at each index; every index occurs."""
    return values.new_zeros(num).scatter_reduce_(0, index, values, how, include_self=False)
