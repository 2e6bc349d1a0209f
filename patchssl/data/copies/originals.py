"""Which photographs become originals, and how they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image

from patchssl.data.copies.processes import in_order
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ImageSource
from patchssl.data.synth.randomness import Part, generator
from patchssl.errors import DataError

MIN_ORIGINALS = 2
MAX_ORIGINALS = 10_000  # a strong copy's first four characters name its original


@dataclass(frozen=True)
class Photographs:
    """A source whose images are shrunk, and refused when small.

    Attributes:
        source: the images.
        max_side_px: longer sides are shrunk to it; None keeps all.
        min_side_px: images with a shorter side are refused.
    """

    source: ImageSource
    max_side_px: int | None
    min_side_px: int

    def read(self, index: int) -> Image.Image:
        """Decode one image as RGB.

        Raises:
            UnreadableImage: it cannot be read or is too small.
        """
        image = self.source.read(index)
        if self.max_side_px is not None:
            image.thumbnail((self.max_side_px, self.max_side_px), Image.Resampling.LANCZOS)
        if min(image.size) < self.min_side_px:
            size = f"{image.width} x {image.height} px"
            raise UnreadableImage(str(self.source.ids[index]), f"is {size}, and {self.min_side_px} is the least side")
        return image


@dataclass(frozen=True)
class Chosen:
    """What became of the photographs.

    Attributes:
        indices: places in the source of the originals, in order.
        left_out: path in the source and reason of those looked at that cannot be used.
    """

    indices: tuple[int, ...]
    left_out: tuple[tuple[str, str], ...]


def choose_originals(photographs: Photographs, num_originals: int | None, *, seed: int, workers: int) -> Chosen:
    """Choose the images that can be used.

    Args:
        photographs: where they come from.
        num_originals: how many, in an order that follows from the seed, so that fewer are the first of more; None
            takes all, in the source's order.
        seed: of that order.
        workers: processes that look at images.

    Raises:
        DataError: too many, or too few can be used.
    """
    source = photographs.source
    _check(source, num_originals)
    order = list(range(len(source)))
    if num_originals is not None:
        order = generator(seed, Part.SAMPLE).permutation(len(source)).tolist()
    indices, left_out = list[int](), list[tuple[str, str]]()
    for index, reason in in_order(partial(_look, photographs, order), len(order), workers=workers):
        if reason is None:
            indices.append(index)
        else:
            left_out.append((str(source.ids[index]), reason))
        if len(indices) == num_originals:
            break
    least = MIN_ORIGINALS if num_originals is None else num_originals
    if len(indices) < least:
        raise DataError(
            f"{len(indices)} of the {len(source)} images of {source.location} can be used, and {least} originals are "
            f"needed{_instances(left_out)}. Give more photographs, or ask for other numbers."
        )
    return Chosen(tuple(indices), tuple(left_out))


def _look(photographs: Photographs, order: Sequence[int], number: int) -> tuple[int, str | None]:
    """An image's place in the source, and why it cannot be used."""
    index = order[number]
    try:
        photographs.read(index)
    except UnreadableImage as error:
        return index, error.reason
    return index, None


def _check(source: ImageSource, num_originals: int | None) -> None:
    if num_originals is None and len(source) > MAX_ORIGINALS:
        raise DataError(
            f"{source.location} holds {len(source):,} images; a benchmark has at most {MAX_ORIGINALS:,} originals, "
            f"because four digits tell them apart. Choose some of them with --num-originals."
        )
    if num_originals is not None and not MIN_ORIGINALS <= num_originals <= MAX_ORIGINALS:
        raise DataError(f"{num_originals} originals: a benchmark has {MIN_ORIGINALS} to {MAX_ORIGINALS:,}.")


def _instances(left_out: Sequence[tuple[str, str]]) -> str:
    return "".join(f"; {path} {reason}" for path, reason in left_out[:3])
