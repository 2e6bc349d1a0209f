"""Retrieval of images of the query's class: in a gallery, or among all other images of one labelled set.

An image counts as right if it has the query's label. The whole gallery is ranked by cosine similarity. AP is the
rectangular one, the mean over all images of the class of the precision at the place of each: not the trapezoid of
revisited Oxford and Paris, and not divided by what happens to be found among the first k, as some libraries do; mAP@100
is that of Google Landmarks v2. An image that stands in gallery and queries (by its id) never counts for itself, and a
query whose class has no other image cannot find any: it leaves the mean.

The first number to show is `map`, to which every image of a class counts; recall at 1, which metric learning shows
first, is the accuracy of one neighbour, and `eval knn` has that already.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.backbones import Backbone
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.checks import check_features, check_parts
from patchssl.evaluate.features import Features
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.queries.class_positives import Positives, own_rows
from patchssl.evaluate.scoring import make_row
from patchssl.evaluate.search.chance import average_precision_by_chance, r_precision_by_chance, recall_by_chance
from patchssl.evaluate.search.factory import FLAT, SearchResult, search
from patchssl.evaluate.search.full_ranking import full_ranks
from patchssl.evaluate.search.ranking import average_precision, r_precision, ranks_in_list, recall_at

logger = logging.getLogger(__name__)

KS = (1, 5, 10, 100)
CUTOFF = 100
HEADLINE = "map"
DEPTH = 2048

# A query and the zero-based ranks of what is right for it.
_Ranking = Iterator[tuple[int, NDArray[np.int64]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassProtocol:
    """The defaults that the protocol sets.

    Attributes:
        name: of the protocol.
        tokens: what the descriptor is, as `patchssl.pooling.parse_tokens` reads it.
    """

    name: str
    tokens: str = "cls"


PROTOCOLS = {"class": ClassProtocol(name="class")}


@dataclass(frozen=True, eq=False, slots=True)
class ClassResult:
    """What came of Q queries.

    Attributes:
        values: (Q,) for each metric; NaN where a query's class has no other image.
        num_positives: (Q,) other images of the class.
        num_candidates: (Q,) images that were ranked.
        num_own: queries that stand in the gallery too, and were taken out for themselves.
        index: what an approximate index did; None where all was ranked.
    """

    values: Mapping[str, NDArray[np.float64]]
    num_positives: NDArray[np.int64]
    num_candidates: NDArray[np.int64]
    num_own: int
    index: Mapping[str, Any] | None = None


def prepare(backbone: Backbone, protocol: str = "class", *, image_size: int | None = None) -> Backbone:
    """The same backbone with the geometry of classification, which fits networks of one size as well.

    Args:
        backbone: any.
        protocol: one of PROTOCOLS.
        image_size: side of the crop in pixels; None for 224, or what the network was made for.

    Raises:
        ConfigError: the protocol is unknown, or the network does not take that size.
    """
    _check_protocol(protocol)
    sized = backbone.with_protocol_geometry()
    return sized if image_size is None else sized.at_size(image_size)


def evaluate(
    gallery: Features,
    queries: Features | None = None,
    *,
    index: str = FLAT,
    index_parameters: str | None = None,
    depth: int = DEPTH,
    seed: int = 0,
) -> ClassResult:
    """Rank the gallery for every query.

    Args:
        gallery: (M, D) with labels, any integers.
        queries: (Q, D) with labels; None to search with each image of the gallery among the others.
        index: `Flat` ranks the whole gallery; any other FAISS factory finds `depth` neighbours, and what is right and
            not among them counts as never found.
        index_parameters: of its search, as `patchssl.evaluate.search.factory.search` takes them.
        depth: of an approximate index.
        seed: of an index that is trained.

    Raises:
        ConfigError: the index cannot be had.
        DataError: a part is empty, has no labels, non-finite features or an id twice, the parts do not belong together,
            or no query has an image to find.
    """
    _check(gallery, queries)
    asked = gallery if queries is None else queries
    assert gallery.labels is not None
    assert asked.labels is not None
    own = np.arange(len(gallery)) if queries is None else own_rows(gallery, queries)
    positives = Positives(gallery.labels, asked.labels, own)
    counted = np.flatnonzero(positives.nums)
    if not len(counted):
        raise DataError(
            f"none of the {len(asked)} queries has another image of its class in the gallery; there is nothing to find"
        )
    _tell_left_out(len(asked) - len(counted), len(asked), leave_one_out=queries is None)
    num_candidates = len(gallery) - (own >= 0)
    names = _metric_names(int(num_candidates.min()))
    values = {name: np.full(len(asked), np.nan) for name in names}
    ranking, report = _full(gallery, asked, positives, counted), None
    if index != FLAT:
        # One more, for the query itself.
        depth = min(depth + 1, len(gallery))
        found = search(asked.features, gallery.features, depth, index=index, parameters=index_parameters, seed=seed)
        ranking, report = _listed(found, positives, counted), found.report
    for query, ranks in ranking:
        for name, value in _metrics(ranks, int(positives.nums[query]), names).items():
            values[name][query] = value
    num_own = 0 if queries is None else int(np.count_nonzero(own >= 0))
    return ClassResult(values, positives.nums, num_candidates, num_own, None if report is None else report.as_details())


def _full(gallery: Features, asked: Features, positives: Positives, counted: NDArray[np.int64]) -> _Ranking:
    """The ranks of all that is right."""
    for chosen in positives.chunks(counted):
        yield from zip(
            chosen.tolist(),
            full_ranks(
                asked.features[chosen],
                gallery.features,
                [positives.of(query) for query in chosen],
                own=positives.own[chosen],
            ),
            strict=True,
        )


def _listed(found: SearchResult, positives: Positives, counted: NDArray[np.int64]) -> _Ranking:
    """The ranks of what is right among the neighbours that an index found."""
    for query in counted.tolist():
        own = positives.own[query : query + 1]
        yield query, ranks_in_list(found.similarities[query], found.rows[query], positives.of(query), own)


def score(
    features: Mapping[str, Features],
    truth: None = None,
    *,
    protocol: str = "class",
    index: str = FLAT,
    index_parameters: str | None = None,
    depth: int = DEPTH,
    features_s: float = 0.0,
    device: str = "cpu",
    seed: int = 0,
) -> Scored:
    """Evaluate features by the protocol `class`.

    Args:
        features: "gallery" and "queries", or "labelled" alone, with labels; their `meta` tells model, data and
            settings.
        truth: nothing; what is right stands in the labels.
        protocol: one of PROTOCOLS.
        index: as this and the following of `evaluate`.
        index_parameters: of the search in it.
        depth: of it.
        features_s: how long computing the features took.
        device: where they were computed.
        seed: of the intervals, of a trained index, and what fresh weights were drawn from.

    Raises:
        ConfigError: the protocol is unknown, or the index cannot be had.
        DataError: the features cannot be evaluated.
    """
    _check_protocol(protocol)
    start = time.perf_counter()
    result = evaluate(*features.values(), index=index, index_parameters=index_parameters, depth=depth, seed=seed)
    approximate = {} if result.index is None else {"index_parameters": result.index.get("parameters"), "depth": depth}
    return make_row(
        task="retrieval",
        protocol=protocol,
        parts=features,
        values=result.values,
        headline=HEADLINE,
        meaning={"similarity": "cosine", "average_precision": "rectangular", "index": index, **approximate},
        settings={
            "num_without_positives": int(np.count_nonzero(result.num_positives == 0)),
            "num_queries_in_gallery": result.num_own,
        },
        seconds={"features": features_s, "evaluate": time.perf_counter() - start},
        device=device,
        seed=seed,
        details={"chance": chance(result), **({} if result.index is None else {"index": dict(result.index)})},
    )


def chance(result: ClassResult) -> dict[str, float]:
    """What a random order gives for each metric, the mean over the queries that count."""
    pairs = np.stack([result.num_positives, result.num_candidates], axis=1)  # (Q, 2)
    kinds, nums = np.unique(pairs[result.num_positives > 0], axis=0, return_counts=True)
    return {
        name: float(np.average([_by_chance(name, *kind) for kind in kinds.tolist()], weights=nums))
        for name in result.values
    }


def _metric_names(num_candidates: int) -> list[str]:
    ks = [k for k in KS if k <= num_candidates]
    if len(ks) < len(KS):
        logger.warning(
            "%d images to rank are too few for recall at %s; they are left out",
            num_candidates,
            ", ".join(str(k) for k in KS if k > num_candidates),
        )
    limited = [f"map_at_{CUTOFF}"] if num_candidates >= CUTOFF else []
    return [HEADLINE, *limited, "r_precision", *(f"recall_at_{k}" for k in ks)]


def _metrics(ranks: NDArray[np.int64], num: int, names: Sequence[str]) -> dict[str, float]:
    known = {"map": average_precision(ranks, num), "r_precision": r_precision(ranks, num)}
    known[f"map_at_{CUTOFF}"] = average_precision(ranks, num, cutoff=CUTOFF)
    known |= {f"recall_at_{k}": recall_at(ranks, k) for k in KS}
    return {name: known[name] for name in names}


def _by_chance(name: str, num: int, num_candidates: int) -> float:
    if name == "r_precision":
        return r_precision_by_chance(num, num_candidates)
    if name.startswith("map"):
        return average_precision_by_chance(num, num_candidates, cutoff=None if name == "map" else CUTOFF)
    return recall_by_chance(num, num_candidates, int(name.removeprefix("recall_at_")))


def _check(gallery: Features, queries: Features | None) -> None:
    if queries is None:
        check_features("labelled", gallery)
        check_parts({"labelled": gallery})
        return
    check_features("gallery", gallery)
    check_features("query", queries)
    check_parts({"gallery": gallery, "query": queries})


def _check_protocol(name: str) -> None:
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol {name!r} is unknown to retrieval of classes; allowed: {', '.join(PROTOCOLS)}")


def _tell_left_out(num: int, num_queries: int, *, leave_one_out: bool) -> None:
    if num:
        told = "are alone in their class" if leave_one_out else "have no other image of their class in the gallery"
        logger.warning("%d of %d queries %s; they are left out of the mean", num, num_queries, told)
