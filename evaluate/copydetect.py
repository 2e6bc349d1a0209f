"""Copy detection: each query looks for the image that it was made from; see `copy_protocols` for the protocols."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.backbones import Backbone
from patchssl.data.copy_truth import CopyTruth
from patchssl.evaluate.checks import check_parts
from patchssl.evaluate.copies.candidates import Candidates, candidates_of_neighbours, exact_cosines
from patchssl.evaluate.copies.descriptors import Descriptors, make_descriptors
from patchssl.evaluate.copies.places import Places, check_distractors, place_positives
from patchssl.evaluate.copies.plan import DISTRACTORS, QUERIES, REFERENCES, TRAINING, make_plan
from patchssl.evaluate.copies.protocols import PROTOCOLS, named_protocol
from patchssl.evaluate.copies.row import CopyResult, make_copy_row
from patchssl.evaluate.copies.score_normalisation import ScoreNormalisation
from patchssl.evaluate.features import Features
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.search.factory import FLAT, search

__all__ = ["PROTOCOLS", "evaluate", "prepare", "score"]


def prepare(backbone: Backbone, protocol: str, *, image_size: int | None = None) -> Backbone:
    """The backbone with a protocol's geometry; runs of ours keep their own side unless one is given.

    Raises:
        ConfigError: the protocol is unknown, or the network does not take such images.
    """
    chosen = named_protocol(protocol)
    own = backbone.preprocess.image_px if backbone.keeps_geometry else chosen.image_px
    return backbone.with_fit(chosen.fit, image_px=image_size or own, interpolation=chosen.interpolation)


def evaluate(
    features: Mapping[str, Features],
    truth: CopyTruth,
    *,
    protocol: str,
    k: int | None = None,
    whitening: str | None = None,
    normalise_scores: bool | None = None,
    normalisation: ScoreNormalisation | None = None,
    index: str = FLAT,
    index_parameters: str | None = None,
    told: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> CopyResult:
    """Search the references of all queries.

    Args:
        features: `references`, `queries`, and perhaps `distractors`, `training` and `whitening`; those three need no
            ids.
        truth: by the ids of the features.
        protocol: one of PROTOCOLS, which sets what is None below.
        k: references that count for each query; the database may be smaller.
        whitening: `uncentred`, `centred` or `none`.
        normalise_scores: take from scores what a query's nearest training images score.
        normalisation: how; of None as SSCD does.
        index: how the database is searched, as `patchssl.evaluate.search.factory.search` has it; trained on the
            training images where they are needed anyway, else on the database.
        index_parameters: of the search.
        told: further settings for the row, such as how the ground truth names images.
        seed: of samples that an index is trained on.

    Raises:
        ConfigError: an option is out of range, changes nothing, or needs a part that is not there.
        DataError: features cannot be searched, contradict the truth, or distractors hold a query.
    """
    start = time.perf_counter()
    plan = make_plan(
        protocol,
        features,
        k=k,
        whitening=whitening,
        normalise_scores=normalise_scores,
        normalisation=normalisation,
    )
    parts = {part: features[part] for part in plan.parts}
    check_parts(parts)
    if DISTRACTORS in parts:
        check_distractors(parts)
    places = place_positives(parts[QUERIES], parts[REFERENCES], truth)
    descriptors = make_descriptors(parts, plan)
    biases, normalised = _biases(descriptors, plan.normalisation)
    candidates, details = _candidates(
        descriptors, places, plan.k, biases, index=index, parameters=index_parameters, seed=seed
    )
    meaning = {
        "similarity": "cosine",
        "k": plan.k,
        **descriptors.settings,
        **normalised,
        "index": index if index_parameters is None else f"{index} ({index_parameters})",
        "truth": truth.fingerprint()[:12],
    }
    return CopyResult(
        protocol=plan.protocol,
        parts=parts,
        blocks=places.blocks,
        candidates=candidates,
        meaning=meaning,
        settings=dict(told or {}),
        details=details,
        evaluate_s=time.perf_counter() - start,
    )


def _candidates(
    descriptors: Descriptors, places: Places, k: int, biases: NDArray[np.float64] | None, *, index: str, **options: Any
) -> tuple[Candidates, dict[str, Any]]:
    """The first k pairs of each query, and what an index other than the exact one costs and misses."""
    queries = descriptors.parts[QUERIES]
    database = [descriptors.parts[part] for part in (REFERENCES, DISTRACTORS) if part in descriptors.parts]
    # So many more that ties cannot help: see candidates_of_neighbours.
    width = min(sum(map(len, database)), k + max(map(len, places.rows)))
    found = search(queries, database, width, index=index, training=descriptors.parts.get(TRAINING), **options)
    similarities = exact_cosines(queries, database, found.rows) if index == FLAT else found.similarities
    candidates = candidates_of_neighbours(
        similarities, found.rows, places.rows, places.num_positives, k=k, biases=biases
    )
    return candidates, {} if found.report is None else {"index": found.report.as_details()}


def _biases(
    descriptors: Descriptors, normalisation: ScoreNormalisation | None
) -> tuple[NDArray[np.float64] | None, dict[str, Any]]:
    if normalisation is None:
        return None, {"score_normalisation": None}
    training = descriptors.parts[TRAINING]
    num = min(normalisation.num_neighbours, len(training))
    similarities = search(descriptors.parts[QUERIES], training, num).similarities
    told = {"beta": normalisation.beta, "neighbours": [normalisation.first, normalisation.last]}
    return normalisation.biases(similarities), {"score_normalisation": told}


def score(
    features: Mapping[str, Features],
    truth: CopyTruth,
    *,
    protocol: str,
    features_s: float = 0.0,
    device: str = "cpu",
    seed: int = 0,
    **options: Any,
) -> Scored:
    """Evaluate features by a named protocol.

    Args:
        features: as `evaluate` takes them; their `meta` tells model, data and settings.
        truth: by the ids of the features.
        protocol: one of PROTOCOLS.
        features_s: how long computing the features took.
        device: where they were computed.
        seed: of the bootstrap intervals, of a trained index, and what fresh weights were drawn from.
        options: the others of `evaluate`.

    Raises:
        ConfigError: as `evaluate`.
        DataError: as `evaluate`.
    """
    result = evaluate(features, truth, protocol=protocol, seed=seed, **options)
    return make_copy_row(result, features_s=features_s, device=device, seed=seed)
