"""The image files of one folder, and names in messages."""

import os
from collections.abc import Sequence
from pathlib import Path

from patchssl.data.decode import IMAGE_SUFFIXES
from patchssl.errors import DataError

_NUM_NAMED = 5


def images_in(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted, without hidden ones and without those of folders in it.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES
                and not entry.is_dir()
            )
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror or error}") from None


def named(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:_NUM_NAMED]) + (", …" if len(names) > _NUM_NAMED else "")
