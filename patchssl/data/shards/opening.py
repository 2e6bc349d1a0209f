"""Shards → a list of images."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath

from patchssl.data.shards.copying import copy_all
from patchssl.data.shards.finding import PARQUET, SUFFIXES, TAR, suffix_of
from patchssl.data.shards.kept_index import KeptIndexes
from patchssl.data.shards.parquet_index import ParquetIndex, index_parquet, parquet_module, telling_damage
from patchssl.data.shards.parquet_source import ParquetSource
from patchssl.data.shards.shard import Shard, local_shard, lost
from patchssl.data.shards.storage import file_system, trying
from patchssl.data.shards.tar_index import TarIndex, index_tar
from patchssl.data.shards.tar_source import TarSource
from patchssl.errors import DataError

logger = logging.getLogger(__name__)

_NUM_AT_ONCE = 16
_NUM_NAMED = 3
# The end of a parquet file that is fetched at first; most footers are shorter.
_TAIL_BYTES = 1 << 16


def open_shards(
    shards: Sequence[Shard], *, name: str | None, location: str, apply_exif: bool, image_column: str | None = None
) -> TarSource | ParquetSource:
    """Find out what shards hold.

    Args:
        shards: one or more, of one kind.
        name: a short name of the data; None: that of the shard, or of the folder of several.
        location: as it was given.
        apply_exif: turn pictures upright.
        image_column: of parquet files; None: the one that holds images.

    Raises:
        ConfigError: parquet needs pyarrow, which is not installed.
        DataError: they are of several kinds, one is damaged beyond use, or there is no image in them.
    """
    if name is None:
        first = PurePosixPath(shards[0].location)
        name = first.stem if len(shards) == 1 else first.parent.name or first.stem
    kinds = [suffix_of(shard.name) for shard in shards]
    if len(set(kinds)) > 1:
        counted = " and ".join(f"{kinds.count(kind)} {kind}" for kind in SUFFIXES)
        raise DataError(
            f"{location} holds {counted} files; give one kind, by a pattern in quotes, for instance '….tar' or "
            "'….parquet' with * before it"
        )
    if kinds[0] == PARQUET:
        rows = _index_all_parquet(shards, image_column)
        if not sum(map(len, rows)):
            raise DataError(f"{location} has no rows in {len(shards)} parquet files")
        return ParquetSource(shards, rows, name=name, location=location, apply_exif=apply_exif)
    assert kinds[0] == TAR
    indexes = _index_all_tars(shards)
    _tell(shards, indexes)
    if not sum(map(len, indexes)):
        held = next((index.told["others"][1] for index in indexes if "others" in index.told), "nothing")
        raise DataError(f"{location} holds no image files in {len(shards)} tar files (the first of them hold {held})")
    return TarSource(shards, indexes, name=name, location=location, apply_exif=apply_exif)


def _index_all_tars(shards: Sequence[Shard]) -> list[TarIndex]:
    kept = KeptIndexes()
    found = {shard.key: index for shard in shards if (index := kept.find(shard)) is not None}
    new = [shard for shard in shards if shard.key not in found]
    if new:
        logger.info("finding out what %d of %d tar files hold", len(new), len(shards))
    failed: list[DataError] = []
    for shard, path in _files(new):
        try:
            index = index_tar(path, shard.location)
            if shard.url is None and local_shard(shard.location, shard.name) != shard:
                raise lost(shard, "is being written while it is read")
            if index.lost and not _num_whole(shard, index):
                raise DataError(f"{index.lost}, and no whole image comes before; fetch it again, or leave it out")
        except OSError as error:
            failed.append(lost(shard, f"can no longer be read: {error.strerror or error}"))
        except DataError as error:
            failed.append(error)
        else:
            found[shard.key] = index
            kept.keep(shard, index)
    if failed:
        more = f" ({len(failed) - 1} more of the {len(shards)} cannot be used either)" if len(failed) > 1 else ""
        raise DataError(f"{failed[0]}{more}")
    return [found[shard.key] for shard in shards]


def _files(shards: Sequence[Shard]) -> Iterator[tuple[Shard, Path]]:
    """Each shard and its file on this machine."""
    if all(shard.url is None for shard in shards):
        return ((shard, Path(shard.location)) for shard in shards)
    return copy_all(shards)


def _num_whole(shard: Shard, index: TarIndex) -> int:
    return int(((index.sizes >= 0) & (index.offsets + index.sizes <= shard.size)).sum())


def _tell(shards: Sequence[Shard], indexes: Sequence[TarIndex]) -> None:
    """Say what is lost or left out."""
    lost = [index.lost for index in indexes if index.lost]
    for told in lost[:_NUM_NAMED]:
        logger.warning("%s; what can be read before that is used", told)
    if len(lost) > _NUM_NAMED:
        logger.warning("%d more tar files are cut off or damaged", len(lost) - _NUM_NAMED)
    further = [index.told["further"] for index in indexes if "further" in index.told]
    if further:
        logger.warning(
            "%d images are left out since they stand behind another of the same sample (for instance %s); a sample's "
            "members have the same name up to the first dot",
            sum(num for num, _ in further),
            further[0][1],
        )
    for kind, words in (("unended", "have no end mark; if they were cut off, what followed is missing"),):
        found = [index.told[kind][1] for index in indexes if kind in index.told]
        if found:
            logger.warning("%d tar files %s (for instance %s)", len(found), words, found[0])
    empty = [shard.location for shard, index in zip(shards, indexes, strict=True) if not len(index)]
    if empty and len(empty) < len(shards):
        logger.warning("%d tar files hold no images (for instance %s)", len(empty), empty[0])


def _index_all_parquet(shards: Sequence[Shard], column: str | None) -> list[ParquetIndex]:
    parquet_module()  # before threads ask for it
    with ThreadPoolExecutor(_NUM_AT_ONCE) as pool:
        return list(pool.map(lambda shard: _index_parquet(shard, column), shards))


def _index_parquet(shard: Shard, column: str | None) -> ParquetIndex:
    if shard.size == 0:
        raise DataError(f"{shard.location} is empty (0 bytes); fetch it again, or leave it out")
    if shard.url is not None:
        return index_parquet(BytesIO(_tail(shard)), shard.location, column)
    with telling_damage(shard.location), Path(shard.location).open("rb") as file:
        return index_parquet(file, shard.location, column)


def _tail(shard: Shard) -> bytes:
    """The footer of a remote parquet file, behind the mark with which one begins."""
    tail = _last_bytes(shard, min(shard.size, _TAIL_BYTES))
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < needed <= shard.size:
        tail = _last_bytes(shard, needed)
    return b"PAR1" + tail


def _last_bytes(shard: Shard, num: int) -> bytes:
    assert shard.url is not None
    system, _ = file_system(shard.url)
    content: bytes = trying(
        f"{shard.location} cannot be read",
        lambda: system.cat_file(shard.path, start=shard.size - num, end=shard.size),
    )
    return content[-num:]  # a server that knows no parts of files sends all of it
