"""Features on disk: a folder for each origin and token part, in it shards of a fixed number of images.

    ROOT/features/KEY/origin.json
    ROOT/features/KEY/PART/000012.safetensors

A shard is there whole or not at all, and a part may lack any of them. Everything that changes a feature belongs into
the key, so that nothing is ever overwritten by something else; the folder may be deleted at any time.
"""

import hashlib
import json
import logging
import mmap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from patchssl.atomic import replacing
from patchssl.errors import DataError
from patchssl.evaluate.results import canonical_hash

logger = logging.getLogger(__name__)

FORMAT = 1
SHARD_IMAGES = 256
_ARRAYS: dict[str, type[np.generic]] = {"features": np.float32, "indices": np.int64}
_KEY_DIGITS = 32
_LEFT_OVER_S = 24 * 3600


class StoreError(DataError):
    """Features cannot be kept."""


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """One part of the descriptors of some consecutive images of a source.

    Attributes:
        features: (m, …) float32, of those that can be read.
        indices: (m,) int64 ascending: their places in the source.
        unreadable: index, path and reason of each of the others.
    """

    features: NDArray[np.float32]
    indices: NDArray[np.int64]
    unreadable: tuple[tuple[int, str, str], ...]


class FeatureStore:
    """A folder that keeps features."""

    def __init__(self, root: Path, *, shard_images: int = SHARD_IMAGES) -> None:
        """Look at a folder without touching it.

        Args:
            root: need not be there yet.
            shard_images: images in a shard; an interrupted extraction loses less than one.
        """
        self.root, self.shard_images = root, shard_images

    def shelf(self, key: Mapping[str, Any]) -> "Shelf":
        """The place of the features with a key.

        Args:
            key: everything that they depend on, as JSON.
        """
        whole = {"format": FORMAT, "shard_images": self.shard_images, **key}
        folder = self.root / "features" / canonical_hash(whole)[:_KEY_DIGITS]
        return Shelf(folder, whole, self.shard_images)


class Shelf:
    """The features of one model, prepared in one way, of one state of the data."""

    def __init__(self, folder: Path, key: Mapping[str, Any], shard_images: int) -> None:
        self.folder, self.key, self.shard_images = folder, key, shard_images

    def read(self, part: str, images: range) -> Shard | None:
        """The shard of some images, its features mapped into memory, or None; a damaged one is told and counts as none.

        Args:
            part: of the descriptor.
            images: their places in the source, from one shard's beginning to its end.
        """
        path = self._path(part, images.start // self.shard_images)
        try:
            shard = _read(path)
            _check_images(shard, images)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("stored features are damaged and computed again: %s: %s", path, error)
            return None
        return shard

    def write(self, part: str, number: int, shard: Shard) -> None:
        """Keep a shard; it appears whole or not at all, and may replace one that another process wrote meanwhile.

        Raises:
            StoreError: the disk is full or cannot be written.
        """
        path = self._path(part, number)
        try:
            self._prepare(path.parent)
            _write(path, shard)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(
                f"features cannot be kept in {path.parent}: {reason}; free some space, or take another --cache DIR "
                "or --no-cache"
            ) from None

    def _path(self, part: str, number: int) -> Path:
        return self.folder / part / f"{number:06d}.safetensors"

    def _prepare(self, folder: Path) -> None:
        if folder.is_dir():
            return
        folder.mkdir(parents=True, exist_ok=True)
        told = self.folder / "origin.json"
        if not told.exists():
            with replacing(told) as temporary:
                temporary.write_text(json.dumps(dict(self.key), indent=2, sort_keys=True), encoding="utf-8")

    def sweep(self) -> None:
        """Remove what processes that were killed while writing left here, once it is a day old."""
        for left in self.folder.glob("**/.*.part"):
            try:
                if time.time() - left.stat().st_mtime > _LEFT_OVER_S:
                    left.unlink()
            except OSError:
                continue  # its process has just finished it, or another one sweeps


def _write(path: Path, shard: Shard) -> None:
    unreadable = json.dumps(shard.unreadable)
    features = np.ascontiguousarray(shard.features, dtype=np.float32)
    indices = np.ascontiguousarray(shard.indices, dtype=np.int64)
    metadata = {"unreadable": unreadable, "sha256": _checksum(features, indices, unreadable)}
    with replacing(path) as temporary:
        save_file({"features": features, "indices": indices}, temporary, metadata=metadata)


def _read(path: Path) -> Shard:
    # By one handle: the library's reader opens the file twice, and another process may replace it in between.
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(mapped[:8], "little")
    if start > len(mapped):
        raise ValueError("it ends within its header")
    header = json.loads(mapped[8:start])
    metadata = header["__metadata__"]
    features, indices = (_array(mapped, start, header[name], kind) for name, kind in _ARRAYS.items())
    if _checksum(features, indices, metadata["unreadable"]) != metadata["sha256"]:
        raise ValueError("the checksum does not fit the content")
    unreadable = tuple(
        (int(index), str(name), str(reason)) for index, name, reason in json.loads(metadata["unreadable"])
    )
    return Shard(features, indices, unreadable)


def _array(mapped: mmap.mmap, start: int, entry: Mapping[str, Any], kind: type[np.generic]) -> NDArray[Any]:
    first, end = entry["data_offsets"]
    values = np.frombuffer(mapped, kind, (end - first) // np.dtype(kind).itemsize, start + first)
    return values.reshape(entry["shape"])


def _check_images(shard: Shard, images: range) -> None:
    found = sorted([*shard.indices.tolist(), *(index for index, _, _ in shard.unreadable)])
    if found != list(images) or len(shard.features) != len(shard.indices):
        raise ValueError(f"it holds {len(found)} images and not the {len(images)} from {images.start} on")


def _checksum(features: NDArray[np.float32], indices: NDArray[np.int64], unreadable: str) -> str:
    digest = hashlib.sha256(f"{features.dtype} {features.shape} {indices.dtype} {indices.shape}\n".encode())
    for array in (features, indices):
        digest.update(array.reshape(-1).view(np.uint8).data)
    digest.update(unreadable.encode())
    return digest.hexdigest()
