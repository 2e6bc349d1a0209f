"""A benchmark for copy detection from any photographs, in the layout of the Copydays data set."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from patchssl.data.copies.originals import Photographs, choose_originals
from patchssl.data.copies.processes import in_order
from patchssl.data.copies.writing import Plan, make_folders, write_original_and_copies, write_tables
from patchssl.data.images import ImageSource
from patchssl.data.synth.copies import CROP_PERCENTS, JPEG_QUALITIES
from patchssl.data.synth.difficulty import check_difficulty
from patchssl.data.synth.files import refuse_occupied, whole_folder
from patchssl.errors import DataError

_log = logging.getLogger(__name__)

_MOST_STRONG = 99
_BEST_QUALITY = 95  # above it libjpeg keeps no longer to its tables
_MOST_REMOVED = 95
_LEAST_SIDE_PX = 32
_NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class CopiesSummary:
    """What was written.

    Attributes:
        output: the folder.
        num_originals: images in `original/`.
        num_copies: images in the other folders, those of `strong/` among them.
        num_strong: images in `strong/`.
        left_out: path and reason of photographs that could not be used.
        seconds: how long it took.
    """

    output: Path
    num_originals: int
    num_copies: int
    num_strong: int
    left_out: tuple[tuple[str, str], ...]
    seconds: float


def write_copies(
    output: Path,
    source: ImageSource,
    *,
    num_originals: int | None = None,
    strong_per_image: int = 2,
    qualities: Sequence[int] = JPEG_QUALITIES,
    crops: Sequence[int] = CROP_PERCENTS,
    difficulty: float = 1.0,
    max_side_px: int | None = None,
    min_side_px: int = 64,
    seed: int = 0,
    workers: int = 0,
    on_original: Callable[[int, int], None] | None = None,
) -> CopiesSummary:
    """Write originals and their copies.

    The copies of original `i` follow from `seed`, `i` and its pixels, whatever else is written and by how many
    processes; JPEG pixels and letters are the same as far as Pillow is.

    Args:
        output: a new or empty folder; gets `original/`, `strong/`, `jpegqual/Q/` and `crops/P/`, and the tables
            `originals.csv`, `edits.csv` and, if there are such, `left_out.csv`. It appears under its name only when
            everything is in it.
        source: the photographs, with their EXIF orientation applied. Originals are written anew as RGB JPEGs of
            quality 95; all copies are made from the pixels before that.
        num_originals: how many of them, 2 to 10,000, chosen by the seed; None takes all, of which there may then be
            no more.
        strong_per_image: strong copies of each original, 1 to 99.
        qualities: of the JPEG copies, 1 to 95; no other change is made to them.
        crops: percentages of the surface that are cut off, 1 to 95.
        difficulty: above 0, at most 100, 1 being usual; the number of the strong copies' edits and their strength
            grow with it.
        max_side_px: originals with a longer side are shrunk to it.
        min_side_px: photographs with a shorter side are left out, at least 32.
        seed: other seeds give other copies.
        workers: processes; 0 does everything in this one.
        on_original: called after each original with the numbers of originals done and in all.

    Returns:
        How many images of each kind were written, and what was left out.

    Raises:
        DataError: a number is out of range, there are too many or too few photographs, or `output` is not free.
    """
    _check(strong_per_image, qualities, crops, difficulty, max_side_px, min_side_px, seed)
    refuse_occupied(output)
    start = time.perf_counter()
    photographs = Photographs(source, max_side_px, min_side_px)
    chosen = choose_originals(photographs, num_originals, seed=seed, workers=workers)
    _report_left_out(chosen.left_out)
    plan = Plan(photographs, chosen.indices, strong_per_image, tuple(qualities), tuple(crops), difficulty, seed)
    total = len(chosen.indices)
    with whole_folder(output) as folder:
        make_folders(plan, folder)
        rows = []
        for made in in_order(partial(write_original_and_copies, plan, folder), total, workers=workers):
            rows.append(made)
            if on_original is not None:
                on_original(len(rows), total)
        write_tables(folder, rows, chosen.left_out)
    num_strong = total * strong_per_image
    summary = CopiesSummary(
        output=output,
        num_originals=total,
        num_copies=num_strong + total * (len(qualities) + len(crops)),
        num_strong=num_strong,
        left_out=chosen.left_out,
        seconds=time.perf_counter() - start,
    )
    _log.info(
        "%d originals, %d copies, %d of them strong; difficulty %g; %.1f s",
        summary.num_originals,
        summary.num_copies,
        summary.num_strong,
        difficulty,
        summary.seconds,
    )
    return summary


def _report_left_out(left_out: Sequence[tuple[str, str]]) -> None:
    if left_out:
        named = "; ".join(f"{path} {reason}" for path, reason in left_out[:_NUM_NAMED])
        more = f"; and {len(left_out) - _NUM_NAMED} more" if len(left_out) > _NUM_NAMED else ""
        _log.warning("left out %d images, listed in left_out.csv: %s%s", len(left_out), named, more)


def _check(
    strong_per_image: int,
    qualities: Sequence[int],
    crops: Sequence[int],
    difficulty: float,
    max_side_px: int | None,
    min_side_px: int,
    seed: int,
) -> None:
    if not 1 <= strong_per_image <= _MOST_STRONG:
        raise DataError(
            f"{strong_per_image} strong copies per image: give 1 to {_MOST_STRONG}, which two digits tell apart."
        )
    for what, numbers, most in (("JPEG qualities", qualities, _BEST_QUALITY), ("crops", crops, _MOST_REMOVED)):
        if not all(1 <= number <= most for number in numbers) or len(set(numbers)) < len(numbers):
            raise DataError(f"{what} {', '.join(map(str, numbers))}: give different whole numbers from 1 to {most}.")
    check_difficulty(difficulty)
    if min_side_px < _LEAST_SIDE_PX:
        raise DataError(f"The least side is {min_side_px} px; crops need at least {_LEAST_SIDE_PX}.")
    if max_side_px is not None and max_side_px < min_side_px:
        raise DataError(
            f"Shrunk to {max_side_px} px, no image has the least side of {min_side_px} px; give a larger longest side."
        )
    if seed < 0:
        raise DataError(f"The seed is {seed}; give a whole number from 0 up.")
