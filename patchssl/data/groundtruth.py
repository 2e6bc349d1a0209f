"""CSV files of copy detection: pairs of a query and its reference, and pairs that someone predicts.

The columns are `query,reference` or, as DISC21 (Douze et al., arXiv 2106.09672) has them, `query_id,reference_id`. A
query without a match has an empty reference, or does not stand in the file.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from patchssl.data.copy_truth import ONE_BLOCK, CopyTruth
from patchssl.data.listing import named
from patchssl.data.tables import read_table
from patchssl.errors import DataError

logger = logging.getLogger(__name__)

_QUERY, _REFERENCE, _SCORE, _BLOCK = "query", "reference", "score", "block"
_NEEDED = "needed: query,reference (or query_id,reference_id, as DISC21 has it)"


@dataclass(frozen=True, slots=True)
class Pairs:
    """The rows of a ground truth.

    Attributes:
        path: the file.
        references: query → its references as they are written; none for a query without a match.
        blocks: query → block, empty where the file has no column `block`.
    """

    path: Path
    references: Mapping[str, tuple[str, ...]]
    blocks: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Scored pairs.

    Attributes:
        path: the file.
        queries: (P,) of each pair.
        references: (P,).
        scores: (P,) finite, higher is surer.
    """

    path: Path
    queries: tuple[str, ...]
    references: tuple[str, ...]
    scores: tuple[float, ...]


def read_groundtruth(path: Path) -> Pairs:
    """Read a ground truth.

    Raises:
        DataError: there is no such file, a column is missing, a pair stands twice, a query has both a match and a row
            without one, or two blocks.
    """
    rows, query, reference = _read(path)
    found: dict[str, list[str]] = {}
    blocks: dict[str, str] = {}
    for row in rows:
        name = row[query].strip()
        found.setdefault(name, []).append((row[reference] or "").strip())
        block = (row.get(_BLOCK) or "").strip()
        if block and blocks.setdefault(name, block) != block:
            raise DataError(f"{path}: the query {name} is in the blocks {blocks[name]} and {block}; it counts in one")
    pairs = Counter((name, match) for name, matches in found.items() for match in matches)
    repeated = [f"{name},{match}" for (name, match), count in pairs.items() if count > 1]
    if repeated:
        raise DataError(f"{path}: {len(repeated)} pairs stand in several rows ({named(repeated)}); keep one of each")
    unclear = [name for name, matches in found.items() if "" in matches and len(matches) > 1]
    if unclear:
        raise DataError(
            f"{path}: {len(unclear)} queries have a reference and also a row without one ({named(unclear)}); an empty "
            "reference says that there is no match"
        )
    if blocks and len(blocks) < len(found):
        raise DataError(f"{path}: {len(found) - len(blocks)} of {len(found)} queries have no block; fill the column")
    return Pairs(path, {name: tuple(match for match in matches if match) for name, matches in found.items()}, blocks)


def read_predictions(path: Path) -> Predictions:
    """Read scored pairs from a CSV with the columns `query,reference,score`.

    Raises:
        DataError: there is no such file, a column is missing or empty, a score is no finite number, or a pair stands
            twice.
    """
    rows, query, reference = _read(path, _SCORE)
    scores = [_number(path, number, row[_SCORE]) for number, row in enumerate(rows, start=2)]
    queries = tuple(row[query].strip() for row in rows)
    references = tuple((row[reference] or "").strip() for row in rows)
    empty = [name for name, match in zip(queries, references, strict=True) if not match]
    if empty:
        raise DataError(f"{path}: {len(empty)} predictions have no reference ({named(empty)}); leave such rows out")
    repeated = [f"{name},{match}" for (name, match), count in _counted(queries, references) if count > 1]
    if repeated:
        raise DataError(
            f"{path}: {len(repeated)} pairs are predicted several times ({named(repeated)}); score each once"
        )
    return Predictions(path, queries, references, tuple(scores))


def _counted(queries: Iterable[str], references: Iterable[str]) -> Iterable[tuple[tuple[str, str], int]]:
    return Counter(zip(queries, references, strict=True)).items()


def _number(path: Path, number: int, text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{path} row {number}: the score is {text!r}; needed: a finite number")
    return score


def _read(path: Path, *more: str) -> tuple[list[dict[str, str]], str, str]:
    """The rows, and what the columns of queries and references are called."""
    if not path.is_file():
        raise DataError(f"there is no file {path}; {_NEEDED}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = [name.strip() for name in file.readline().split(",")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}") from None
    suffix = "_id" if f"{_QUERY}_id" in header else ""
    query, reference = _QUERY + suffix, _REFERENCE + suffix
    if query not in header or reference not in header:
        raise DataError(f"{path} has the columns {', '.join(header) or '(none)'}; {_NEEDED}")
    return read_table(path, required=(query, *more)), query, reference


def make_truth(pairs: Pairs, queries: Sequence[str], references: Sequence[str]) -> tuple[CopyTruth, str]:
    """Find the images that a ground truth names.

    A name is an image's id, or where the file has no ids its stem: `a/b.jpg` may be written `b`.

    Args:
        pairs: the ground truth.
        queries: ids of all queries; one that is not named has no match.
        references: ids of all references.

    Returns:
        The truth by ids, and what names are: `relative path` or `file stem`, of queries and of references.

    Raises:
        DataError: images are named that are not there, or a stem is that of several; or no query has a match.
    """
    of_queries, told_queries = _places(pairs.path, "queries", list(pairs.references), queries)
    matches = list(dict.fromkeys(match for found in pairs.references.values() for match in found))
    of_references, told_references = _places(pairs.path, "references", matches, references)
    positives: dict[str, tuple[str, ...]] = dict.fromkeys(queries, ())
    blocks = dict.fromkeys(queries, ONE_BLOCK)
    for name, found in pairs.references.items():
        positives[of_queries[name]] = tuple(of_references[match] for match in found)
    if pairs.blocks:
        unnamed = sorted(set(queries) - set(of_queries.values()))
        if unnamed:
            raise DataError(
                f"{pairs.path} gives blocks, but none to {len(unnamed)} of {len(queries)} queries ({named(unnamed)}); "
                "list each query"
            )
        blocks = {of_queries[name]: block for name, block in pairs.blocks.items()}
    told = told_queries if told_queries == told_references else f"{told_queries}, of references {told_references}"
    logger.info("%s names images by %s", pairs.path, told)
    return CopyTruth(blocks, positives), told


def _places(path: Path, kind: str, names: Sequence[str], ids: Sequence[str]) -> tuple[dict[str, str], str]:
    """Name → id, and how they are named."""
    by_path = {PurePath(image).as_posix(): image for image in ids}
    if all(name in by_path for name in names):
        return {name: by_path[name] for name in names}, "relative path"
    by_stem: dict[str, list[str]] = {}
    for image in ids:
        by_stem.setdefault(PurePath(image).stem, []).append(image)
    missing = [name for name in names if name not in by_stem]
    if missing:
        # Told by whichever way of naming fits more of them.
        unknown = min(missing, [name for name in names if name not in by_path], key=len)
        raise DataError(
            f"{path} names {len(unknown)} {kind} that are not there ({named(unknown)}); there are {len(ids)} {kind}, "
            f"for instance {named(list(ids)[:2])}; names are relative paths or file names without suffix"
        )
    unclear = [name for name in names if len(by_stem[name]) > 1]
    if unclear:
        several = ", ".join(by_stem[unclear[0]][:3])
        raise DataError(
            f"{path} names {len(unclear)} {kind} that are the stem of several files ({named(unclear)}: {several}); "
            "write relative paths"
        )
    places = {name: by_stem[name][0] for name in names}
    return places, "file stem"
