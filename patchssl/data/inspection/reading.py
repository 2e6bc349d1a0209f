"""Every image of a source, read once and decoded once by worker processes."""

import os
import stat
from collections.abc import Callable

import numpy as np

from patchssl.data.decode import UnreadableImage
from patchssl.data.images import FileSource, StoredSource
from patchssl.data.inspection.facts import FACTS, Facts, unreadable, write_facts
from patchssl.data.loader import iterate

# Small, so that a bar moves and little is lost at the end; large enough that handing on costs nothing.
_BLOCK_IMAGES = 32


def read_facts(source: StoredSource, *, workers: int, on_images: Callable[[int], None] | None = None) -> Facts:
    """Read and decode every image as a whole; those that cannot be read are noted, however many they are.

    Args:
        source: M images.
        workers: processes; 0 does it in this one.
        on_images: called with the number of images done since the last call.

    Raises:
        PatchsslError: the source itself cannot be read any more.
    """
    blocks = _Blocks(source)
    tables, reasons = [np.zeros(0, FACTS)], dict[int, str]()
    for block in iterate(blocks, first_step=0, workers=min(workers, len(blocks)), pin_memory=False):
        tables.append(block.table)
        reasons.update(block.reasons)
        if on_images is not None:
            on_images(len(block.table))
    return Facts(np.concatenate(tables), reasons)


class _Blocks:
    """Consecutive images, block by block; reasons have their places among all images."""

    def __init__(self, source: StoredSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return -(-len(self.source) // _BLOCK_IMAGES)

    def __getitem__(self, number: int) -> Facts:
        images = range(number * _BLOCK_IMAGES, min((number + 1) * _BLOCK_IMAGES, len(self.source)))
        table, reasons = np.zeros(len(images), FACTS), dict[int, str]()
        for place, index in enumerate(images):
            try:
                _refuse_special(self.source, index)
                stored = self.source.fetch(index)
                write_facts(table[place], stored, self.source.where(index), apply_exif=self.source.apply_exif)
            except UnreadableImage as error:
                reasons[index] = unreadable(error)
        return Facts(table, reasons)


def _refuse_special(source: StoredSource, index: int) -> None:
    """Refuse pipes and devices with the name of an image, which may have no end or never begin.

    Raises:
        UnreadableImage: it is one.
    """
    if not isinstance(source, FileSource):
        return
    try:
        mode = os.stat(source.root / source.ids[index]).st_mode  # noqa: PTH116 - a third of the time for many files
    except (OSError, ValueError):
        return  # reading says why
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UnreadableImage(source.where(index), "is no regular file")
