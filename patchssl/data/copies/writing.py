"""An original, its copies, and the tables that say where each comes from."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from patchssl.data.copies.edits import Applied, strong
from patchssl.data.copies.originals import Photographs
from patchssl.data.synth.edits import crop
from patchssl.data.synth.randomness import Part, generator

QUALITY = 95  # of everything but the JPEG copies


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        photographs: where the originals come from.
        indices: place in the source of each original.
        strong_per_image: strong copies of each.
        qualities: of the JPEG copies.
        crops: percentages of the surface that are cut off.
        difficulty: of the strong copies.
        seed: of the crops and the strong copies.
    """

    photographs: Photographs
    indices: tuple[int, ...]
    strong_per_image: int
    qualities: tuple[int, ...]
    crops: tuple[int, ...]
    difficulty: float
    seed: int


@dataclass(frozen=True)
class Made:
    """An original and its strong copies as they were written.

    Attributes:
        original: its file, relative to the benchmark.
        source: the photograph's path in its source.
        strong: file and edits of each strong copy.
    """

    original: str
    source: str
    strong: tuple[tuple[str, tuple[Applied, ...]], ...]


def make_folders(plan: Plan, folder: Path) -> None:
    """Make all folders that images go to."""
    blocks = [f"jpegqual/{quality}" for quality in plan.qualities] + [f"crops/{percent}" for percent in plan.crops]
    for block in ("original", "strong", *blocks):
        (folder / block).mkdir(parents=True)


def write_original_and_copies(plan: Plan, folder: Path, number: int) -> Made:
    """Write one original and all its copies.

    Args:
        plan: what is to be written.
        folder: where to, with the folders of `make_folders`. None is made here: when an error or an interruption has
            removed them, another process that is still at work ends with an error as well.
        number: of the original, 0 to 9,999; the first four characters of its name and of its copies' names.

    Raises:
        UnreadableImage: it cannot be read any more.
        OSError: a file cannot be written.
    """
    image = plan.photographs.read(plan.indices[number])
    name, pixels = f"{number:04d}00.jpg", np.asarray(image)
    _save(image, folder / "original" / name)
    for quality in plan.qualities:
        _save(image, folder / "jpegqual" / str(quality) / name, quality)
    for percent in plan.crops:
        cropped = crop(generator(plan.seed, Part.CROP, number, percent), pixels, percent)
        _save(Image.fromarray(cropped), folder / "crops" / str(percent) / name)
    written = []
    for copy in range(plan.strong_per_image):
        edited, applied = strong(generator(plan.seed, Part.STRONG, number, copy), image, plan.difficulty)
        path = f"strong/{number:04d}{copy + 1:02d}.jpg"
        _save(edited, folder / path)
        written.append((path, applied))
    return Made(f"original/{name}", str(plan.photographs.source.ids[plan.indices[number]]), tuple(written))


def write_tables(folder: Path, made: Sequence[Made], left_out: Sequence[tuple[str, str]]) -> None:
    """Write `originals.csv`, `edits.csv` and, where photographs were left out, `left_out.csv`.

    Edits are joined by `+` in the order in which they were applied; their parameters are a JSON list of objects.
    """
    _write_table(folder / "originals.csv", ("original", "source"), ((row.original, row.source) for row in made))
    edits = (
        (
            path,
            row.original,
            "+".join(edit.name for edit in applied),
            json.dumps([{"edit": edit.name, **edit.parameters} for edit in applied]),
        )
        for row in made
        for path, applied in row.strong
    )
    _write_table(folder / "edits.csv", ("query", "original", "edits", "parameters"), edits)
    if left_out:
        _write_table(folder / "left_out.csv", ("source", "reason"), left_out)


def _save(image: Image.Image, path: Path, quality: int = QUALITY) -> None:
    # A comment in the source's file would go on into its copies and tell which they are.
    image.save(path, quality=quality, comment=b"")


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    # File names may hold bytes that are no UTF-8; they come back as they were by the same rule.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
