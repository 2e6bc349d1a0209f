"""Scored pairs from a file, whoever made them, by the metrics of copy detection."""

import numpy as np

from patchssl.data.copy_truth import ONE_BLOCK, CopyTruth
from patchssl.data.groundtruth import Pairs, Predictions
from patchssl.data.listing import named
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.copies.candidates import make_candidates
from patchssl.evaluate.copies.protocols import named_protocol
from patchssl.evaluate.copies.row import CopyResult
from patchssl.evaluate.features import Features
from patchssl.evaluate.results import canonical_hash


def evaluate_predictions(predictions: Predictions, pairs: Pairs, *, protocol: str, k: int | None = None) -> CopyResult:
    """Compare scored pairs with a ground truth, names as they are written.

    Queries are those of the ground truth and of the predictions; one that the ground truth does not name is a copy of
    nothing. All predictions count unless k is given, whatever the protocol's k is.

    Args:
        predictions: each pair once.
        pairs: the ground truth.
        protocol: whose metrics to take.
        k: how many of a query count.

    Raises:
        ConfigError: k is below 1.
        DataError: predictions and ground truth share no query, or no query is a copy.
    """
    if k is not None and k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    shared = set(predictions.queries) & pairs.references.keys()
    if not shared:
        raise DataError(
            f"{predictions.path} ({named(list(dict.fromkeys(predictions.queries)))}) and {pairs.path} "
            f"({named(list(pairs.references))}) name no query in common; both must name images the same way"
        )
    ids = sorted({*pairs.references, *predictions.queries})
    positives = {query: pairs.references.get(query, ()) for query in ids}
    truth = CopyTruth({query: pairs.blocks.get(query, ONE_BLOCK) for query in ids}, positives)
    place = {query: number for number, query in enumerate(ids)}
    right = {(query, match) for query, found in positives.items() for match in found}
    candidates = make_candidates(
        np.array([place[query] for query in predictions.queries], dtype=np.int64),
        np.array(predictions.scores, dtype=np.float64),
        np.array([pair in right for pair in zip(predictions.queries, predictions.references, strict=True)], dtype=bool),
        np.array([len(positives[query]) for query in ids], dtype=np.int64),
        k=k,
    )
    queries = _stand_in(ids, predictions, pairs, truth)
    meaning = {"similarity": "given scores", "k": k, "truth": truth.fingerprint()[:12]}
    blocks = np.array([truth.blocks[query] for query in ids], dtype=np.str_)
    return CopyResult(named_protocol(protocol), {"queries": queries}, blocks, candidates, meaning)


def _stand_in(ids: list[str], predictions: Predictions, pairs: Pairs, truth: CopyTruth) -> Features:
    """What a row needs to know of queries whose features nobody gave: names, and who predicted."""
    told = canonical_hash([list(predictions.queries), list(predictions.references), list(predictions.scores)])
    model = {"spec": predictions.path.name, "family": "predictions", "dim": None, "weights_sha256": told}
    dataset = {"name": pairs.path.stem, "path_name": str(pairs.path), "fingerprint": truth.fingerprint()}
    return Features(
        np.empty((len(ids), 0), np.float32),
        ids=np.array(ids, dtype=np.str_),
        meta={"file": predictions.path.name, "model": model, "dataset": dataset},
    )
