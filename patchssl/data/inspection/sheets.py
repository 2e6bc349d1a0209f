"""Sheets of small pictures: some drawn from all, and equal or nearly equal ones side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from patchssl.data.decode import UnreadableImage
from patchssl.data.inspection.collection import Collection
from patchssl.data.inspection.duplicates import Duplicates
from patchssl.data.inspection.facts import Facts
from patchssl.data.inspection.names import shown
from patchssl.data.inspection.near import NearPairs
from patchssl.data.inspection.subset import Subset
from patchssl.draws import uniforms
from patchssl.structs import SampleKeys

CONTACT_SHEET, DUPLICATE_SHEET = "contact_sheet.jpg", "duplicate_sheet.jpg"

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SIDE_PX = 144
_LINE_PX = 14
_LETTERS_PX = 11
_GAP_PX = 6
_NUM_LETTERS = 22
_MOST_COLUMNS = 12
_MOST_GROUPS = 24
_MOST_OF_GROUP = 6
_QUALITY = 90
_PAPER, _INK, _MISSING = (255, 255, 255), (0, 0, 0), (210, 210, 210)
# Drawing images for a sheet is no augmentation; those have the streams from 0 on.
_STREAM = 0x5EE7


@dataclass(frozen=True, slots=True)
class Cell:
    """A place of a sheet: an image and the lines under it."""

    index: int
    lines: tuple[str, ...]


def drawn_images(facts: Facts, num: int, seed: int) -> list[int]:
    """Choose readable images by the seed, each equally likely; in their order."""
    readable = facts.readable
    keys = SampleKeys(epoch=torch.zeros(len(readable), dtype=torch.int64), index=torch.from_numpy(readable))
    drawn = uniforms(seed, keys, _STREAM, 1)[:, 0].numpy()
    return sorted(readable[np.argsort(drawn, kind="stable")[:num]].tolist())


def write_contact_sheet(folder: Path, collection: Collection, images: Sequence[int]) -> None:
    """Write the images in a grid, with part and class where there are such; nothing where there are no images."""
    if not images:
        return
    num_lines = (len(collection.parts) > 1) + collection.is_labelled
    cells = [Cell(index, _told(collection, index)[:num_lines]) for index in images]
    width = min(_MOST_COLUMNS, int(np.ceil(np.sqrt(len(cells)))))
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    _draw(collection, rows, num_lines).save(folder / CONTACT_SHEET, quality=_QUALITY)


def write_duplicate_sheet(folder: Path, collection: Collection, duplicates: Duplicates, near: NearPairs | None) -> None:
    """Write the first groups of equal pictures, then the most similar pairs, a row for each; nothing if there are none.

    Under each image stand what it is, its part and class where there are such, and its name.
    """
    rows = [
        [
            Cell(index, (f"group {number} of {len(duplicates.pictures)}", *_told(collection, index)))
            for index in members[:_MOST_OF_GROUP].tolist()
        ]
        for number, members in zip(range(1, _MOST_GROUPS + 1), duplicates.pictures, strict=False)
    ]
    if near is not None:
        pairs = zip(near.one[:_MOST_GROUPS].tolist(), near.other.tolist(), near.cosines.tolist(), strict=False)
        rows += [
            [Cell(index, (f"cosine {cosine:.4f}", *_told(collection, index))) for index in (one, other)]
            for one, other, cosine in pairs
        ]
    if rows:
        num_lines = max(len(cell.lines) for row in rows for cell in row)
        _draw(collection, rows, num_lines).save(folder / DUPLICATE_SHEET, quality=_QUALITY)


def _told(collection: Collection, index: int) -> tuple[str, ...]:
    """Part and class, where the collection has such, and name."""
    part = (collection.part(index),) if len(collection.parts) > 1 else ()
    label = (collection.label(index) or "(no class)",) if collection.is_labelled else ()
    return (*part, *label, collection.source.ids[index])


def _draw(collection: Collection, rows: Sequence[Sequence[Cell]], num_lines: int) -> Image.Image:
    cell_px = _SIDE_PX + _GAP_PX
    row_px = cell_px + num_lines * _LINE_PX
    width = max(map(len, rows)) * cell_px + _GAP_PX
    sheet = Image.new("RGB", (width, len(rows) * row_px + _GAP_PX), _PAPER)
    draw, font = ImageDraw.Draw(sheet), _font()
    source = Subset(collection.source, np.array([cell.index for row in rows for cell in row], np.int64))
    number = 0
    for top, row in zip(range(_GAP_PX, sheet.height, row_px), rows, strict=False):
        for left, cell in zip(range(_GAP_PX, width, cell_px), row, strict=False):
            small = _small(source, number)
            number += 1
            sheet.paste(small, (left + (_SIDE_PX - small.width) // 2, top + (_SIDE_PX - small.height) // 2))
            _write_lines(draw, font, cell.lines, left, top + _SIDE_PX)
    return sheet


def _small(source: Subset, number: int) -> Image.Image:
    """The whole picture in a square, pixels of small ones as squares; a grey one where it has become unreadable."""
    try:
        image = source.read(number)
    except UnreadableImage:
        return Image.new("RGB", (_SIDE_PX, _SIDE_PX), _MISSING)
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    times = _SIDE_PX // max(image.size)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _write_lines(draw: ImageDraw.ImageDraw, font: Font, lines: Iterable[str], left: int, top: int) -> None:
    for line in lines:
        draw.text((left, top), shown(line, _NUM_LETTERS), fill=_INK, font=font)
        top += _LINE_PX


def _font() -> Font:
    """The letters that come with Matplotlib, which has more alphabets than Pillow."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), _LETTERS_PX)
