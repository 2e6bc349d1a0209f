"""DATA of copy detection in folders of queries and references: DISC21, and the generic layout.

DISC21 (Douze et al., arXiv 2106.09672): `references/`, `dev_queries/` or `final_queries/` (or `queries/`), `training/`,
and `dev_queries_groundtruth.csv` or `final_queries_groundtruth.csv`. Generic: `queries/`, `references/`, perhaps
`distractors/` and `training/`, and `groundtruth.csv`.
"""

import logging
from pathlib import Path

from patchssl.data.copy_truth import CopyData
from patchssl.data.groundtruth import make_truth, read_groundtruth
from patchssl.data.images import FileSource
from patchssl.data.sources import open_unlabelled
from patchssl.errors import DataError

logger = logging.getLogger(__name__)

DISC_HOME = "https://ai.meta.com/datasets/disc21-dataset/"
QUERY_SETS = ("dev", "final")
REFERENCES, QUERIES, TRAINING, DISTRACTORS = "references", "queries", "training", "distractors"
GROUND_TRUTH = "groundtruth.csv"
_GENERIC = "queries/, references/, perhaps distractors/ and training/, and groundtruth.csv with query,reference"


def is_disc(folder: Path) -> bool:
    """Whether a folder has a name of DISC21's in it."""
    return any((folder / f"{name}_{QUERIES}").is_dir() or _table(folder, name).is_file() for name in QUERY_SETS)


def is_generic(folder: Path) -> bool:
    """Whether a folder has the generic layout, be it in part."""
    return any((folder / name).exists() for name in (REFERENCES, QUERIES, GROUND_TRUTH))


def open_disc(path: Path, *, query_set: str | None = None) -> CopyData:
    """Open a DISC21 folder.

    Args:
        path: the folder.
        query_set: `dev` or `final`; None for the one that is there, `dev` of both.

    Raises:
        DataError: a part is missing or empty, or the ground truth does not fit the images.
    """
    there = [name for name in QUERY_SETS if _table(path, name).is_file() and _queries(path, name).is_dir()]
    chosen = query_set or next(iter(there), None)
    if chosen not in there or not (path / REFERENCES).is_dir():
        wanted = [f"{name}_queries/ (or queries/) with {_table(path, name).name}" for name in QUERY_SETS]
        told = wanted[QUERY_SETS.index(query_set)] if query_set in QUERY_SETS else ", or ".join(wanted)
        raise DataError(
            f"{path} is no whole DISC21 folder: needed are references/, {told}, and for normalised scores training/; "
            f"found: {_entries(path)}. The official data: {DISC_HOME}"
        )
    if query_set is None and len(there) > 1:
        logger.warning("%s has the query sets %s; taking %s (--query-set chooses)", path, " and ".join(there), chosen)
    return _open(path, "disc", _queries(path, chosen), _table(path, chosen), (TRAINING,), {"query_set": chosen})


def open_generic(path: Path) -> CopyData:
    """Open a folder of queries, references and a ground truth.

    Raises:
        DataError: a part is missing or empty, or the ground truth does not fit the images.
    """
    missing = [f"{name}/" for name in (QUERIES, REFERENCES) if not (path / name).is_dir()]
    missing += [] if (path / GROUND_TRUTH).is_file() else [GROUND_TRUTH]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; needed are {_GENERIC}; found: {_entries(path)}")
    return _open(path, "generic", path / QUERIES, path / GROUND_TRUTH, (DISTRACTORS, TRAINING), {})


def _open(
    path: Path, layout: str, queries: Path, table: Path, optional: tuple[str, ...], told: dict[str, str]
) -> CopyData:
    folders = {REFERENCES: path / REFERENCES}
    folders |= {part: path / part for part in optional if (path / part).is_dir()}
    sources = {part: open_part(folder, path) for part, folder in (folders | {QUERIES: queries}).items()}
    truth, names = make_truth(read_groundtruth(table), sources[QUERIES].ids, sources[REFERENCES].ids)
    return CopyData(layout, sources, truth, {**told, "names": names})


def open_part(folder: Path, data: Path) -> FileSource:
    """All images below a folder that is a part of DATA.

    Raises:
        DataError: there are none, or they are no files of their own.
    """
    opened = open_unlabelled(folder, apply_exif=False)
    if not isinstance(opened, FileSource):
        raise DataError(f"{folder} holds images, but not as files of their own, which are needed here; unpack them")
    return FileSource(folder, opened.ids, None, (), data.resolve().name, str(data), False)


def _queries(path: Path, name: str) -> Path:
    own = path / f"{name}_{QUERIES}"
    return own if own.is_dir() else path / QUERIES


def _table(path: Path, name: str) -> Path:
    return path / f"{name}_{QUERIES}_groundtruth.csv"


def _entries(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
