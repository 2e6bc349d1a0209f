"""At which places the images of a revisited ground truth are found, by difficulty.

Easy counts the easy images and ignores the hard ones, hard the other way round, medium counts both; junk is always
ignored (Radenović et al., CVPR 2018). What is ignored is taken out of the ranking, so that what follows moves up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.data.revisited_truth import RevisitedTruth
from patchssl.evaluate.features import Features
from patchssl.evaluate.queries.alignment import rows_by_name
from patchssl.evaluate.search.factory import FLAT, search
from patchssl.evaluate.search.full_ranking import full_ranks
from patchssl.evaluate.search.ranking import ranks_in_list

DIFFICULTIES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


@dataclass(frozen=True, eq=False, slots=True)
class RankedQueries:
    """The places of the right images of Q queries.

    Attributes:
        names: (Q,) of the queries, in the order of their features.
        ranks: difficulty → for each query the zero-based ranks of the right images that were found, ascending.
        num_positives: difficulty → (Q,) how many right images the ground truth has.
        index: what an approximate index did; None where all was ranked.
    """

    names: tuple[str, ...]
    ranks: Mapping[str, Sequence[NDArray[np.int64]]]
    num_positives: Mapping[str, NDArray[np.int64]]
    index: Mapping[str, Any] | None = None


def rank_queries(
    features: Mapping[str, Features],
    truth: RevisitedTruth,
    *,
    index: str = FLAT,
    parameters: str | None = None,
    depth: int,
    seed: int = 0,
) -> RankedQueries:
    """Rank the database, distractors included, for every query.

    Args:
        features: "database", "queries" and perhaps "distractors".
        truth: what is right.
        index: `Flat` ranks all; any other FAISS factory gives the first `depth` places, and what is right and not
            among them counts as never found.
        parameters: of an index's search, as `patchssl.evaluate.search.factory.search` takes them.
        depth: how many places an index gives.
        seed: of an index that is trained.

    Raises:
        DataError: features and ground truth do not fit.
        ConfigError: the index cannot be had.
    """
    rows = rows_by_name("database", features["database"], truth.database)
    of_query = rows_by_name("query", features["queries"], truth.queries)
    # The ground truth's query of each feature.
    asked = np.argsort(of_query, kind="stable")[np.count_nonzero(of_query < 0) :]
    database = [features[name].features for name in ("database", "distractors") if name in features]
    places = {
        difficulty: tuple([_rows_of(truth, grades, query, rows) for query in asked] for grades in chosen)
        for difficulty, chosen in DIFFICULTIES.items()
    }
    queries = features["queries"].features
    report = None
    if index == FLAT:
        ranks = {difficulty: full_ranks(queries, database, *lists) for difficulty, lists in places.items()}
    else:
        found = search(queries, database, depth, index=index, parameters=parameters, seed=seed)
        report = None if found.report is None else found.report.as_details()
        ranks = {
            difficulty: [
                ranks_in_list(found.similarities[query], found.rows[query], right, ignored)
                for query, (right, ignored) in enumerate(zip(*lists, strict=True))
            ]
            for difficulty, lists in places.items()
        }
    num_positives = {
        difficulty: np.array([sum(len(getattr(truth, grade)[query]) for grade in grades) for query in asked], np.int64)
        for difficulty, (grades, _) in DIFFICULTIES.items()
    }
    return RankedQueries(tuple(truth.queries[query] for query in asked), ranks, num_positives, report)


def _rows_of(truth: RevisitedTruth, grades: Sequence[str], query: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The features of the images of some grades, those that could be read."""
    found: NDArray[np.int64] = rows[np.concatenate([getattr(truth, grade)[query] for grade in grades])]
    return found[found >= 0]
