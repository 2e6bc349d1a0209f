"""Retrieval of places: revisited Oxford and Paris (Radenović et al., CVPR 2018), and data of their form.

`official` cuts every query to its box before anything else, as the benchmark's example code demands. `dino` is what
DINO's script (arXiv 2104.14294, eval_image_retrieval.py) does: the same without the cut. Otherwise both are equal:
the longer side shrunk to at most 224 px by Lanczos as Pillow's `thumbnail` does it, one scale, the class token, cosine
similarity, no whitening; the published figures for Paris are at 512 px with three scales. Where several scales are
asked for, `official` makes the descriptor of each scale a unit vector before the mean, as the benchmark's reference
code does, and `dino` does not.

The ranking is of the whole database, since precision at a place and the area under the curve depend on every place: a
list of k neighbours gives other numbers. AP is the area of trapezoids, `patchssl.evaluate.search.ranking.trapezoid_ap`.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.backbones import Backbone
from patchssl.data.revisited_truth import RevisitedTruth
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.checks import check_parts
from patchssl.evaluate.features import Features
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.queries.alignment import name_of
from patchssl.evaluate.queries.revisited_ranks import DIFFICULTIES, RankedQueries, rank_queries
from patchssl.evaluate.scoring import make_row
from patchssl.evaluate.search.factory import FLAT
from patchssl.evaluate.search.ranking import precision_at_revisited, trapezoid_ap

logger = logging.getLogger(__name__)

SCALES = (1.0, 0.5**0.5, 0.5)
KS = (1, 5, 10)
HEADLINE = "map_medium"
DEPTH = 2048
"""How many places an approximate index gives; the GPU indexes of FAISS give no more."""

_NUM_NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalProtocol:
    """The defaults that a named protocol sets.

    Attributes:
        name: of the protocol.
        crop_queries: whether queries are cut to their boxes.
        unit_scales: whether the descriptor of each scale is L2-normalised before the mean, where there are several.
        image_px: to which the longer side is shrunk.
        tokens: what the descriptor is, as `patchssl.pooling.parse_tokens` reads it.
        multiscale: whether descriptors are of the scales `SCALES`.
    """

    name: str
    crop_queries: bool
    unit_scales: bool
    image_px: int = 224
    tokens: str = "cls"
    multiscale: bool = False


PROTOCOLS = {
    "official": RetrievalProtocol(name="official", crop_queries=True, unit_scales=True),
    "dino": RetrievalProtocol(name="dino", crop_queries=False, unit_scales=False),
}


def prepare(
    backbone: Backbone, protocol: str = "official", *, image_size: int | None = None, multiscale: bool | None = None
) -> Backbone:
    """The same backbone for images as a protocol prepares them.

    Args:
        backbone: any that takes images of any proportions.
        protocol: one of PROTOCOLS.
        image_size: of the longer side in pixels; None for the protocol's, or for runs of ours their own.
        multiscale: three scales or one; None for the protocol's.

    Raises:
        ConfigError: the protocol is unknown, or the network takes images of one size only.
    """
    defaults = _defaults(protocol)
    own = backbone.preprocess.image_px if backbone.keeps_geometry else defaults.image_px
    several = defaults.multiscale if multiscale is None else multiscale
    return backbone.with_fit(
        "long-side",
        image_px=own if image_size is None else image_size,
        interpolation="lanczos",
        scales=SCALES if several else (1.0,),
        unit_scales=several and defaults.unit_scales,
    )


def score(
    features: Mapping[str, Features],
    truth: RevisitedTruth,
    *,
    protocol: str = "official",
    crop_queries: bool | None = None,
    index: str = FLAT,
    index_parameters: str | None = None,
    depth: int = DEPTH,
    features_s: float = 0.0,
    device: str = "cpu",
    seed: int = 0,
) -> Scored:
    """Evaluate features by a named protocol.

    Args:
        features: "database", perhaps "distractors", and "queries", in this order; their `meta` tells model, data and
            settings.
        truth: the ground truth.
        protocol: one of PROTOCOLS.
        crop_queries: whether the queries were cut to their boxes; None where nobody knows, as of features of others.
        index: `Flat` ranks the whole database; any other FAISS factory finds `depth` neighbours.
        index_parameters: of the search in an approximate index, as `patchssl.evaluate.search.factory.search` takes
            them.
        depth: of an approximate index.
        features_s: how long computing the features took.
        device: where they were computed.
        seed: of the intervals, of a trained index, and what fresh weights were drawn from.

    Raises:
        ConfigError: the protocol is unknown, or the index cannot be had.
        DataError: the features cannot be evaluated, or do not fit the ground truth.
    """
    scored, _ = score_with_ranks(
        features,
        truth,
        protocol=protocol,
        crop_queries=crop_queries,
        index=index,
        index_parameters=index_parameters,
        depth=depth,
        features_s=features_s,
        device=device,
        seed=seed,
    )
    return scored


def score_with_ranks(
    features: Mapping[str, Features],
    truth: RevisitedTruth,
    *,
    protocol: str,
    crop_queries: bool | None,
    index: str = FLAT,
    index_parameters: str | None = None,
    depth: int = DEPTH,
    features_s: float = 0.0,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Scored, RankedQueries]:
    """As `score`, with the places at which every query's images were found."""
    _defaults(protocol)
    start = time.perf_counter()
    check_parts(features)
    num_known = _warn_of_known(features.get("distractors"), truth)
    depth = min(depth, sum(len(part) for name, part in features.items() if name != "queries"))
    ranked = rank_queries(features, truth, index=index, parameters=index_parameters, depth=depth, seed=seed)
    values = metric_values(ranked)
    approximate = {} if index == FLAT else {"index_parameters": (ranked.index or {}).get("parameters"), "depth": depth}
    scored = make_row(
        task="retrieval",
        protocol=protocol,
        parts=features,
        values=values,
        headline=HEADLINE,
        meaning={
            "similarity": "cosine",
            "average_precision": "trapezoid",
            "crop_queries": crop_queries,
            "ground_truth": truth.fingerprint(),
            "index": index,
            **approximate,
        },
        settings={"num_own_queries": truth.num_own},
        seconds={"features": features_s, "evaluate": time.perf_counter() - start},
        device=device,
        seed=seed,
        details={
            "num_queries_without_positives": {
                name: int(np.count_nonzero(found == 0)) for name, found in ranked.num_positives.items()
            },
            **({} if num_known is None else {"num_distractors_named_as_listed": num_known}),
            **({} if ranked.index is None else {"index": dict(ranked.index)}),
        },
    )
    return scored, ranked


def metric_values(ranked: RankedQueries) -> dict[str, NDArray[np.float64]]:
    """Ranks → (Q,) for each metric; NaN where a query has nothing to find.

    Args:
        ranked: of Q queries.

    Returns:
        `map_easy`, `mp_at_1_easy` … `mp_at_10_hard`; a difficulty at which no query has anything to find is left out.

    Raises:
        DataError: no query has anything to find.
    """
    values: dict[str, NDArray[np.float64]] = {}
    for difficulty in DIFFICULTIES:
        counts = ranked.num_positives[difficulty]
        if not counts.any():
            if difficulty == "medium":
                raise DataError(
                    f"none of the {len(counts)} queries has an easy or hard image; there is nothing to find"
                )
            logger.warning("no query has %s images: map_%s is left out", difficulty, difficulty)
            continue
        found = list(zip(ranked.ranks[difficulty], counts.tolist(), strict=True))
        values[f"map_{difficulty}"] = np.array([trapezoid_ap(*query) if query[1] else np.nan for query in found])
        for k in KS:
            precisions = [precision_at(*query, k) if query[1] else np.nan for query in found]
            values[f"mp_at_{k}_{difficulty}"] = np.array(precisions)
    return {name: values[name] for name in sorted(values, key=lambda name: not name.startswith("map_"))}


def precision_at(ranks: NDArray[np.int64], num_positives: int, k: int) -> float:
    """Precision at k of the revisited benchmark; where some image was never found, the last stands behind any k."""
    if len(ranks) == num_positives:
        return precision_at_revisited(ranks, k)
    return float(np.count_nonzero(ranks < k) / k)


def _defaults(protocol: str) -> RetrievalProtocol:
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"protocol {protocol!r} is unknown to retrieval of places; allowed: {', '.join(PROTOCOLS)}; class has a "
            "module of its own"
        )
    return PROTOCOLS[protocol]


def _warn_of_known(distractors: Features | None, truth: RevisitedTruth) -> int | None:
    """Count the distractors with the name of an image of the ground truth, which may be right and count as wrong."""
    if distractors is None or distractors.ids is None:
        return None
    known = {*truth.database, *truth.queries}
    shared: list[Any] = [name for name in distractors.ids.tolist() if name_of(name) in known]
    if shared:
        logger.warning(
            "%d of %d distractors have the name of an image of the ground truth (%s): if they are the same, they count "
            "as wrong where they are right; leave them out",
            len(shared),
            len(distractors),
            ", ".join(shared[:_NUM_NAMED]) + (", …" if len(shared) > _NUM_NAMED else ""),
        )
    return len(shared)
