"""Nearest neighbours in any index that FAISS can make, with what it costs and what it misses.

    search(queries, database, 100, index="IVF1024,PQ48", parameters="nprobe=16")

`Flat` is exact. Of every other index a report tells the recall against the exact neighbours.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.search.blocks import Matrices, as_parts, row_blocks, take_rows
from patchssl.evaluate.search.building import BuiltIndex, build_index, make_index, parse_parameters
from patchssl.evaluate.search.index import BLOCK_BYTES, exact_search, finite_units

FLAT = "Flat"

_RECALL_KS = (1, 10, 100)
_RECALL_QUERIES = 1000
_CHUNK_VALUES = 4_000_000
_SAME = 1e-6  # float32 similarities of equal vectors differ less, whatever the order of their sums


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexReport:
    """What an index is, costs and misses.

    Attributes:
        factory: the string that it was made from.
        parameters: of the search, as they were set; those of IVF (`nprobe`) and HNSW (`efSearch`) are always told.
        num_vectors: in it.
        num_training: vectors that it was trained on; 0 where it needs no training.
        recall: k → share of the k exact nearest neighbours, by cosine of the features as they came, that are among the
            first k found. A row that is as similar as the k-th exact neighbour counts as well. Where the index
            transforms the features on purpose, as PCAW does, it tells how much that changes the neighbours.
        num_recall_queries: queries that the recall was taken over, drawn by the seed.
        build_s: seconds to train and fill it.
        bytes_per_vector: its size as FAISS writes it, over num_vectors.
        queries_per_s: searched for k neighbours, all threads together.
    """

    factory: str
    parameters: Mapping[str, float]
    num_vectors: int
    num_training: int
    recall: Mapping[int, float]
    num_recall_queries: int
    build_s: float
    bytes_per_vector: float
    queries_per_s: float

    def as_details(self) -> dict[str, Any]:
        """For the details of a result row, as JSON."""
        return {
            "factory": self.factory,
            "parameters": dict(self.parameters),
            "num_vectors": self.num_vectors,
            "num_training": self.num_training,
            **{f"recall@{k}": round(value, 6) for k, value in self.recall.items()},
            "num_recall_queries": self.num_recall_queries,
            "build_s": round(self.build_s, 3),
            "bytes_per_vector": round(self.bytes_per_vector, 2),
            "queries_per_s": round(self.queries_per_s, 1),
        }


@dataclass(frozen=True, eq=False, slots=True)
class SearchResult:
    """Neighbours of Q queries.

    Attributes:
        similarities: (Q, k) float32 descending; -inf where an index found fewer than k, as an IVF may in the lists that
            it looks into. What the index computes: cosines of `Flat`, approximations of them, or inner products of what
            its transforms give.
        rows: (Q, k) int64 of the database, -1 where it found fewer; of equal similarities the lower row first.
        report: None for `Flat`.
    """

    similarities: NDArray[np.float32]
    rows: NDArray[np.int64]
    report: IndexReport | None = None


def check_factory(index: str, dim: int, parameters: str | None = None) -> None:
    """Refuse what `search` would refuse of an index, before any feature is computed.

    Args:
        index: as of `search`.
        dim: D.
        parameters: as of `search`.

    Raises:
        ConfigError: FAISS does not know the index or the parameters, or has no such index for D.
    """
    if index != FLAT:
        make_index(index, dim, parameters)
    elif parse_parameters(parameters):
        raise ConfigError(f"index {FLAT} is exact and has no parameters; {parameters!r} came: leave them out")


def search(
    queries: NDArray[np.float32],
    database: Matrices,
    k: int,
    *,
    index: str = FLAT,
    parameters: str | None = None,
    training: Matrices | None = None,
    seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> SearchResult:
    """Find the k nearest rows of each query by cosine similarity.

    All rows are L2-normalised first. Then `Flat` finds the exact neighbours, in blocks of the database where it is
    larger than one; any other index gets the rows block by block.

    Args:
        queries: (Q, D).
        database: M rows of width D, as a matrix or several that follow each other, for instance references and
            distractors; also mapped from disk.
        k: 1 to M.
        index: as `faiss.index_factory` reads it, with inner products: `IVF1024,PQ48`, `PCAW256,L2norm,Flat`.
        parameters: of the search, as `faiss.ParameterSpace` reads them: `nprobe=16`.
        training: rows that the index, or its PCA or OPQ, is fitted on; None for the database. `Flat` and others that
            need no training do without.
        seed: of the samples for training and for the recall.
        block_bytes: of a block of the database in exact search; changes no result.

    Raises:
        ConfigError: as check_factory, or k is out of range.
        DataError: the widths differ, there are no queries, the database is empty, features are NaN or infinite, or the
            training vectors are too few.
    """
    parts = as_parts(database)
    num_rows, dim = sum(map(len, parts)), parts[0].shape[1]
    fitted = None if training is None else as_parts(training, "training set")
    for name, shape in (("queries", queries.shape), *(("training vectors", part.shape) for part in fitted or ())):
        if len(shape) != 2 or shape[1] != dim or not shape[0]:
            raise DataError(f"{name} have the shape {shape}; needed: at least one row, and {dim} wide as the database")
    if not 1 <= k <= num_rows:
        raise ConfigError(f"k is {k}; allowed: 1 to {num_rows:,}, the number of vectors in the database")
    check_factory(index, dim, parameters)
    if index == FLAT:
        return SearchResult(*exact_search(queries, parts, k, block_bytes=block_bytes))
    built = build_index(index, parts, training=fitted, parameters=parameters, seed=seed)
    start = time.perf_counter()
    similarities, rows = _find(built, index, queries, k)
    queries_per_s = len(queries) / (time.perf_counter() - start)
    sample = _sampled(len(queries), seed)
    report = IndexReport(
        factory=index,
        parameters={**built.parameters(), **parse_parameters(parameters)},
        num_vectors=num_rows,
        num_training=built.num_training,
        recall=_recall(built, index, queries[sample], parts, rows[sample], block_bytes),
        num_recall_queries=len(sample),
        build_s=built.build_s,
        bytes_per_vector=built.num_bytes() / num_rows,
        queries_per_s=queries_per_s,
    )
    return SearchResult(similarities, rows, report)


def _find(
    built: BuiltIndex, factory: str, queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    similarities = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    for start, block in row_blocks((queries,), max(1, _CHUNK_VALUES // max(k, queries.shape[1]))):
        found, found_rows = built.index.search(finite_units(block, "query", start), k)
        if np.isnan(found).any():
            raise DataError(
                f"index {factory!r} gives similarities that are no numbers; train it on more varied vectors"
            )
        found = np.where(found_rows < 0, -np.inf, found).astype(np.float32)
        order = np.lexsort((found_rows, -found), axis=1)
        part = slice(start, start + len(block))
        similarities[part] = np.take_along_axis(found, order, axis=1)
        rows[part] = np.take_along_axis(found_rows, order, axis=1)
    return similarities, rows


def _sampled(num_queries: int, seed: int) -> NDArray[np.int64]:
    if num_queries <= _RECALL_QUERIES:
        return np.arange(num_queries)
    return np.sort(np.random.default_rng(seed).choice(num_queries, _RECALL_QUERIES, replace=False))


def _recall(
    built: BuiltIndex,
    factory: str,
    queries: NDArray[np.float32],
    parts: Sequence[NDArray[np.float32]],
    rows: NDArray[np.int64],
    block_bytes: int,
) -> dict[int, float]:
    """Recall at 1, 10 and, where so many were asked for, 100."""
    num_rows, k = sum(map(len, parts)), rows.shape[1]
    ks = [most for most in _RECALL_KS if most <= min(num_rows, max(k, _RECALL_KS[1]))]
    if k < ks[-1]:
        _, rows = _find(built, factory, queries, ks[-1])
    _, exact = exact_search(queries, parts, ks[-1], block_bytes=block_bytes)
    return recall(queries, parts, rows, exact, ks)


def recall(
    queries: NDArray[np.float32],
    parts: Sequence[NDArray[np.float32]],
    rows: NDArray[np.int64],
    exact: NDArray[np.int64],
    ks: Sequence[int],
) -> dict[int, float]:
    """The share of the k exact nearest neighbours that were found among the first k, averaged over the queries.

    A row that is as similar as the k-th exact neighbour counts as well as that one: of equals none is nearer.

    Args:
        queries: (Q, D), Q at least 1.
        parts: matrices (m, D), together the database.
        rows: (Q, k) found, each once, -1 where there is none.
        exact: (Q, k) the nearest, the most similar first.
        ks: each at most k.
    """
    hits = dict.fromkeys(ks, 0)
    for query, found, nearest in zip(queries, rows, exact, strict=True):
        cosines = _cosines(query, take_rows(parts, np.maximum(found, 0)))
        exact_cosines = _cosines(query, take_rows(parts, nearest))
        for k in ks:
            hits[k] += int(np.count_nonzero((found[:k] >= 0) & (cosines[:k] >= exact_cosines[k - 1] - _SAME)))
    # More rows than k cannot be found among the first k, so that this is at most 1.
    return {k: num / (k * len(queries)) for k, num in hits.items()}


def _cosines(query: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    ours, theirs = query.astype(np.float64), rows.astype(np.float64)
    norms = np.linalg.norm(ours) * np.linalg.norm(theirs, axis=1)
    found: NDArray[np.float64] = theirs @ ours / np.maximum(norms, 1e-24)
    return found
