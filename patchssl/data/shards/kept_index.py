"""Indexes of tar files, kept from one run to the next."""

import hashlib
import io
import json
import logging
from pathlib import Path

import numpy as np

from patchssl.atomic import replacing
from patchssl.data.shards.shard import Shard
from patchssl.data.shards.tar_index import TarIndex
from patchssl.names import Names
from patchssl.user_cache import user_cache

logger = logging.getLogger(__name__)

_VERSION = 2


class KeptIndexes:
    """Reads and writes indexes; whatever is wrong with what is kept, they are made anew."""

    def __init__(self) -> None:
        """Nothing has been written yet."""
        self._is_told = False

    def find(self, shard: Shard) -> TarIndex | None:
        """The index of a shard as it is now, if one is kept."""
        try:
            path = _path(shard)
            content = path.read_bytes()
        except OSError:
            return None
        try:
            return _from_bytes(content, shard)
        # What numpy and zipfile raise on damaged files is as varied as what these might hold.
        except Exception as error:
            logger.info("%s is damaged (%s); %s is gone through again", path, error, shard.location)
            return None

    def keep(self, shard: Shard, index: TarIndex) -> None:
        """Write an index, or say once that it cannot be."""
        try:
            path = _path(shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(_to_bytes(index, shard))
        except OSError as error:
            if not self._is_told:
                told = "indexes of shards cannot be kept (%s): what these hold is found out again in each run"
                logger.info(told, error)
            self._is_told = True


def _path(shard: Shard) -> Path:
    return user_cache() / "shards" / "indexes" / f"{_digest(shard)}.npz"


def _digest(shard: Shard) -> str:
    return hashlib.sha256(f"{_VERSION}\0{shard.key}".encode(errors="surrogateescape")).hexdigest()


def _to_bytes(index: TarIndex, shard: Shard) -> bytes:
    about = {"key": _digest(shard), "lost": index.lost, "told": index.told}
    file = io.BytesIO()
    np.savez(
        file,
        about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        names=np.frombuffer(index.names.text, dtype=np.uint8),
        ends=index.names.ends,
        offsets=index.offsets,
        sizes=index.sizes,
    )
    return file.getvalue()


def _from_bytes(content: bytes, shard: Shard) -> TarIndex:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        names = Names(arrays["names"].tobytes(), arrays["ends"])
        offsets, sizes = arrays["offsets"], arrays["sizes"]
    if about["key"] != _digest(shard):
        raise ValueError("it is of another file")
    if not len(names) == len(offsets) == len(sizes) or {names.ends.dtype, offsets.dtype, sizes.dtype} != {_INT}:
        raise ValueError("its parts do not fit together")
    told = {kind: (int(num), str(example)) for kind, (num, example) in about["told"].items()}
    return TarIndex(names, offsets, sizes, str(about["lost"]), told)


_INT = np.dtype(np.int64)
