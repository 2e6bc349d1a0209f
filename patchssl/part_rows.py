"""How many rows of patches a part of a batch has, and how its loss is cut, from the boxes that are drawn for it."""

import math
from dataclasses import dataclass

import torch

from patchssl.chunks import Chunk, Layer, cut
from patchssl.config import Config
from patchssl.planning import plan
from patchssl.structs import Pairs, SampleKeys, ViewGroup
from patchssl.views import MultiCrop

# Of so many images boxes are drawn; the means of more would differ by a few percent at most.
_MOST_DRAWN = 16
# Height and width of a photograph. Which patches have partners hardly depends on it.
_IMAGE_PX = (375, 500)


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """The largest chunk of a loss.

    Attributes:
        num_student: S.
        num_teacher: T.
        num_partners: how many rows have a first partner, a second one, and so on.
        is_only: whether all rows are in it.
    """

    num_student: int
    num_teacher: int
    num_partners: tuple[int, ...]
    is_only: bool

    def scaled(self, factor: float) -> "ChunkSizes":
        """The same chunk of so many times the rows."""
        student, teacher, *partners = (
            math.ceil(factor * num) for num in (self.num_student, self.num_teacher, *self.num_partners)
        )
        return ChunkSizes(student, teacher, tuple(partners), self.is_only)

    def chunks(self) -> list[Chunk]:
        """Chunks of this size, on a device and under a mode that are set outside: one, or two that stand for many."""
        layers = tuple(
            Layer(torch.empty(num, dtype=torch.int64), torch.empty(num, dtype=torch.float32))
            for num in self.num_partners
        )
        student, teacher = (torch.empty(num, dtype=torch.int64) for num in (self.num_student, self.num_teacher))
        chunk = Chunk(student, torch.empty(self.num_student, dtype=torch.float32), teacher, layers)
        return [chunk] if self.is_only else [chunk, chunk]


@dataclass(frozen=True, slots=True)
class PartRows:
    """The rows of a part of a batch.

    Attributes:
        kept: for each group of views, how many patches have a partner; None without patches.
        chunks: for each kind of token, the largest chunk of its loss.
    """

    kept: tuple[int, ...] | None
    chunks: dict[str, ChunkSizes]


def part_rows(config: Config, num_images: int, max_rows: dict[str, int]) -> PartRows:
    """Draw boxes and pair what they show.

    Args:
        config: of the run.
        num_images: of the part.
        max_rows: rows of a chunk at most, for each kind of token.
    """
    num_drawn = min(num_images, _MOST_DRAWN)
    factor = num_images / num_drawn
    keys = SampleKeys(torch.zeros(num_drawn, dtype=torch.int64), torch.arange(num_drawn))
    crops = MultiCrop(config.views, config.train.seed).plan(torch.tensor([_IMAGE_PX] * num_drawn), keys)
    groups = [
        ViewGroup(torch.empty(*found.flipped.shape, 3, side, side, dtype=torch.uint8, device="meta"), found)
        for side, found in zip(crops.sides, crops.boxes, strict=True)
    ]
    planned = plan(groups, config)
    return PartRows(
        None if planned.kept is None else tuple(math.ceil(len(rows) * factor) for rows in planned.kept),
        {kind: _largest(pairs, max_rows[kind], factor) for kind, pairs in planned.pairs.items()},
    )


def _largest(pairs: Pairs, max_rows: int, factor: float) -> ChunkSizes:
    chunks = cut(pairs, torch.ones(len(pairs)), max_rows)
    if not chunks:
        return ChunkSizes(0, 0, (), is_only=True)
    num_layers = max(len(chunk.layers) for chunk in chunks)
    partners = [
        max(len(chunk.layers[number].teacher) for chunk in chunks if number < len(chunk.layers))
        for number in range(num_layers)
    ]
    student = max(len(chunk.student) for chunk in chunks)
    teacher = max(len(chunk.teacher) for chunk in chunks)
    found = ChunkSizes(student, teacher, tuple(partners), is_only=len(chunks) == 1)
    if not found.is_only:
        return found
    too_many = factor * (student + teacher) / max_rows
    if too_many <= 1:
        return found.scaled(factor)
    whole = found.scaled(factor / too_many)
    return ChunkSizes(whole.num_student, whole.num_teacher, whole.num_partners, is_only=False)
