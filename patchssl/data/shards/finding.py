"""DATA as named on the command line → shards."""

import glob
import logging
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from patchssl.data.shards.braces import expand_braces
from patchssl.data.shards.shard import Shard, common_names, local_shard
from patchssl.data.shards.storage import MissingError, file_system, is_url, shown, trying
from patchssl.data.shards.tar_index import compressed
from patchssl.errors import DataError

logger = logging.getLogger(__name__)

TAR, PARQUET = ".tar", ".parquet"
SUFFIXES = (TAR, PARQUET)

_COMPRESSED = {
    **dict.fromkeys((".tar.gz", ".tgz"), ("gzip", "gunzip")),
    **dict.fromkeys((".tar.bz2", ".tbz2"), ("bzip2", "bunzip2")),
    **dict.fromkeys((".tar.xz", ".txz"), ("xz", "unxz")),
    ".tar.zst": ("zstd", "unzstd --rm"),
}
_NUM_AT_ONCE = 16
_LETTERS = r"[*?\[]"
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "Last-Modified", "updated", "md5", "created")


def named_shards(data: str) -> list[Shard] | None:
    """The shards that a file, a pattern or a URL names; None: it is none of these.

    Raises:
        DataError: there are none, one is missing, or they cannot be reached.
    """
    if os.path.lexists(data):
        return local_shards([data]) if is_shard(data) and Path(data).is_file() else None
    if is_url(data):
        return find_remote(data)
    return find_shards(data) if re.search(r"[*?\[{]", data) else None


def is_shard(name: str) -> bool:
    """Whether a file is a shard, by its name."""
    return suffix_of(name) in SUFFIXES


def suffix_of(name: str) -> str:
    """The end of a name, in small letters."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - names, not paths of this machine


def refuse_compressed(names: Iterable[str]) -> None:
    """Say what to do with compressed tar files.

    Raises:
        DataError: one of the names is of one.
    """
    for name in names:
        for suffix, (kind, command) in _COMPRESSED.items():
            if name.lower().endswith(suffix):
                raise DataError(compressed(name, kind, command))


def shards_below(folder: Path) -> list[Shard]:
    """The shards in a folder at any depth, sorted by path, without hidden ones.

    Raises:
        DataError: there are none, but compressed tar files.
    """
    found, others, seen = [], [], set()
    for place, subfolders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # by a link, which may lead back up
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        paths = [os.path.join(place, name) for name in files if not name.startswith(".")]  # noqa: PTH118 - as os.walk
        found += [path for path in paths if is_shard(path)]
        others += [path for path in paths if not is_shard(path)]
    if not found:
        refuse_compressed(sorted(others))
    return local_shards(sorted(found))


def check_not_mixed(folder: Path, num_images: int) -> None:
    """Refuse a folder of image files in which tar files lie; of tables in parquet, which often lie there, it is told.

    Args:
        folder: that is there; those in it are not looked into.
        num_images: image files in it.

    Raises:
        DataError: there are both.
    """
    if not num_images:
        return
    with os.scandir(folder) as entries:
        shards = sorted(entry.name for entry in entries if is_shard(entry.name) and not entry.name.startswith("."))
    tars = [name for name in shards if suffix_of(name) == TAR]
    if tars:
        raise DataError(
            f"{folder} holds {num_images} image files and {len(tars)} .tar files, such as {tars[0]}; give one of both: "
            f"a folder of its own, or the pattern '{folder / '*.tar'}' in quotes"
        )
    if shards:
        logger.warning("%s is taken as a folder of image files; %s is not read", folder, shards[0])


def find_shards(data: str) -> list[Shard]:
    """Shards of a pattern on this machine.

    It has braces, each of whose files has to be there, and the letters of `glob`.

    Raises:
        DataError: there are none, or one is missing.
    """
    refuse_compressed([data])
    paths: list[str] = []
    for pattern in expand_braces(data):
        has_letters = re.search(_LETTERS, pattern) and not os.path.lexists(pattern)
        matching = glob.iglob(pattern, recursive=True) if has_letters else ()  # noqa: PTH207 - as shells have it
        paths += _files(matching) if has_letters else [pattern]
    return local_shards(_only_shards(paths, data))


def local_shards(paths: Sequence[str]) -> list[Shard]:
    """Look at files.

    Raises:
        DataError: some are missing.
    """
    paths = list(dict.fromkeys(paths))
    found, missing = [], []
    for path, name in zip(paths, common_names([path.replace(os.sep, "/") for path in paths]), strict=True):
        try:
            found.append(local_shard(path, name))
        except (OSError, ValueError) as error:
            missing.append((path, getattr(error, "strerror", None) or str(error)))
    _check_all_there(missing, len(paths))
    return found


def _files(paths: Iterable[str]) -> list[str]:
    return sorted(path for path in paths if os.path.isfile(path))  # noqa: PTH113 - of many


def _only_shards(paths: Sequence[str], data: str) -> list[str]:
    """Leave out what is no shard, and say so."""
    names = [path.partition("?")[0] if is_url(path) else path for path in paths]
    refuse_compressed(names)
    found = [path for path, name in zip(paths, names, strict=True) if is_shard(name)]
    others = [name for name in names if not is_shard(name)]
    if not found:
        held = f"; it names {shown(others[0])}" if others else ""
        raise DataError(
            f"{shown(data)} names no .tar or .parquet file that is there{held}; is it right, and a pattern in quotes?"
        )
    if others:
        logger.warning(
            "%s: %d files that are no .tar or .parquet are left out, such as %s",
            shown(data),
            len(others),
            shown(others[0]),
        )
    return found


def _check_all_there(missing: Sequence[tuple[str, str]], num: int) -> None:
    if not missing:
        return
    if num == 1:
        raise DataError(f"{missing[0][0]}: {missing[0][1][0].lower()}{missing[0][1][1:]}")
    shards = ", ".join(path for path, _ in missing[:3]) + (", …" if len(missing) > 3 else "")
    raise DataError(
        f"{len(missing)} of the {num} shards cannot be found: {shards} ({missing[0][1].lower()}); fetch them, or give "
        "a pattern of those that are there"
    )


def find_remote(data: str) -> list[Shard]:
    """Shards of a URL: a file, a folder, or a pattern as for `find_shards`.

    Raises:
        DataError: there are none, one is missing, or they cannot be reached.
    """
    refuse_compressed([data.partition("?")[0]])
    places: dict[str, tuple[Any, str]] = {}  # path → its file system and the URL that leads to that
    for url in expand_braces(data):
        system, path = file_system(url)
        places |= dict.fromkeys(_listed(system, path, url), (system, url))
    paths = _only_shards(list(places), data)
    with ThreadPoolExecutor(_NUM_AT_ONCE) as pool:
        infos = list(pool.map(lambda path: _info(places[path][0], path), paths))
    missing = [(shown(path), "no such file") for path, info in zip(paths, infos, strict=True) if info is None]
    _check_all_there(missing, len(paths))
    names = common_names([path.partition("?")[0] if is_url(path) else path for path in paths])
    return [_shard(places[path], path, name, info or {}) for path, name, info in zip(paths, names, infos, strict=True)]


def _listed(system: Any, path: str, url: str) -> list[str]:
    """What a path in a file system stands for."""
    is_web = url.startswith(("http://", "https://"))  # where a question mark begins the query
    told = f"{shown(url)} cannot be listed"
    if re.search(r"[*\[]" if is_web else _LETTERS, path):
        return sorted(trying(told, lambda: system.glob(path)))
    if suffix_of(path.partition("?")[0] if is_web else path):
        return [path]
    listed = trying(told, lambda: system.ls(path, detail=False) if is_web else system.find(path))
    return sorted(name for name in listed if is_shard(name)) or [path]


def _info(system: Any, path: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = trying(f"{shown(path)} cannot be opened", lambda: system.info(path))
    except MissingError:
        return None
    return found


def _shard(place: tuple[Any, str], path: str, name: str, info: dict[str, Any]) -> Shard:
    system, url = place
    location = shown(path if is_url(path) else str(system.unstrip_protocol(path)))
    if info.get("type") == "directory" or not isinstance(info.get("size"), int):
        kind = "is a folder" if info.get("type") == "directory" else "does not tell its size"
        raise DataError(f"{location} {kind}, and a copy could not be told from a part of one; fetch it, give its path")
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key)), "")
    return Shard(name, location, info["size"], stamp, url, path)
