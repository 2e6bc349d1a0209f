"""The built-in images, drawn once and kept."""

import hashlib
import logging
from importlib import resources
from pathlib import Path

from patchssl.data.synth.dataset import write_dataset
from patchssl.errors import DataError

logger = logging.getLogger(__name__)

_NUM_DIGITS = 12


def cached_dataset(cache: Path, *, num_images: int, image_size_px: int, seed: int, difficulty: float = 1.0) -> Path:
    """Draw the data set into a cache, or find it there.

    The folder's name follows from the arguments and from the code that draws, so that the drawings of another version
    are never taken for these.

    Args:
        cache: the folder of all that is kept.
        num_images: as for `write_dataset`.
        image_size_px: as for `write_dataset`.
        seed: as for `write_dataset`.
        difficulty: as for `write_dataset`.

    Returns:
        The folder, as `write_dataset` lays it out.

    Raises:
        DataError: a number is out of range, or the folder cannot be written.
    """
    name = f"{num_images}-{image_size_px}px-seed{seed}-difficulty{float(difficulty)}-{_code_digest()}"
    folder = cache / "synth" / name
    if folder.is_dir():
        return folder
    logger.info("drawing %d images of %d px into %s", num_images, image_size_px, folder)
    try:
        write_dataset(folder, num_images=num_images, image_size_px=image_size_px, seed=seed, difficulty=difficulty)
    except DataError:
        # Another process may have drawn the same meanwhile; what is there is whole.
        if not folder.is_dir():
            raise
    return folder


def _code_digest() -> str:
    digest = hashlib.sha256()
    files = [file for file in resources.files("patchssl.data.synth").iterdir() if file.name.endswith(".py")]
    for file in sorted(files, key=lambda file: file.name):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:_NUM_DIGITS]
