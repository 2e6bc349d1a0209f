"""Candidates of all queries → metrics of a protocol → a result row, and a table of the queries."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.atomic import replacing
from patchssl.errors import DataError
from patchssl.evaluate.copies.candidates import (
    POOLED,
    Candidates,
    PooledMetric,
    average_precisions,
    first_ranks,
    pooled_metrics,
    recall_at_precision_90,
    recalls,
)
from patchssl.evaluate.copies.protocols import CopyMetrics, CopyProtocol
from patchssl.evaluate.features import Features
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.scoring import make_row

TASK = "copydetect"
_FAMILIES = ("jpegqual", "crops")
_HEADLINES = ("strong_map", "jpegqual_map", "crops_map")


@dataclass(frozen=True, eq=False, slots=True)
class CopyResult:
    """What came of Q queries.

    Attributes:
        protocol: the named one.
        parts: features by part of the data, those of the Q queries last.
        blocks: (Q,) of the queries.
        candidates: their scored pairs.
        meaning: settings that change what the numbers mean.
        settings: others.
        details: what else was found.
        evaluate_s: how long the search took.
    """

    protocol: CopyProtocol
    parts: Mapping[str, Features]
    blocks: NDArray[np.str_]
    candidates: Candidates
    meaning: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    evaluate_s: float = 0.0

    @property
    def ids(self) -> NDArray[np.str_]:
        """(Q,) of the queries."""
        ids = list(self.parts.values())[-1].ids
        assert ids is not None
        return ids


def make_copy_row(
    result: CopyResult,
    *,
    features_s: float,
    device: str,
    seed: int,
) -> Scored:
    """Take the metrics and put the row together; intervals are bootstrapped over queries.

    Args:
        result: of the queries.
        features_s: how long computing the features took.
        device: where features were computed.
        seed: of the bootstrap.
    """
    metrics, candidates = result.protocol.metrics, result.candidates
    values = _values(result, metrics)
    whole: Mapping[str, Any] = {}
    if metrics.pooled is not None:
        pooled: dict[str, PooledMetric] = {
            "micro_ap": POOLED[metrics.pooled],
            "recall_at_precision_90": recall_at_precision_90,
        }
        whole = pooled_metrics(candidates, pooled, seed=seed)
    headline = metrics.headline or next((name for name in _HEADLINES if name in values), next(iter(values)))
    return make_row(
        task=TASK,
        protocol=result.protocol.name,
        parts=result.parts,
        values=values,
        headline=headline,
        meaning={
            **result.meaning,
            **({"ap": "trapezoid"} if metrics.by_block or metrics.overall else {}),
            **({"micro_ap": metrics.pooled} if metrics.pooled else {}),
        },
        settings={**result.settings, "num_negative_queries": int(np.count_nonzero(~candidates.has_positives))},
        seconds={"features": features_s, "evaluate": result.evaluate_s},
        device=device,
        seed=seed,
        details=result.details,
        whole=whole,
    )


def _values(result: CopyResult, metrics: CopyMetrics) -> dict[str, NDArray[np.float64]]:
    """Outcomes of every query by metric, NaN where it does not count."""
    values: dict[str, NDArray[np.float64]] = {}
    if metrics.by_block or metrics.overall:
        aps = average_precisions(result.candidates)
        if metrics.overall:
            values["map"] = aps
        if metrics.by_block:
            values |= _by_block(aps, result.blocks)
    return values | {f"recall_at_{k}": recalls(result.candidates, k) for k in metrics.recall_ks}


def _by_block(aps: NDArray[np.float64], blocks: NDArray[np.str_]) -> dict[str, NDArray[np.float64]]:
    """The blocks in their order, those of a family after the mean over the family's queries; originals last."""
    values: dict[str, NDArray[np.float64]] = {}
    names = sorted(dict.fromkeys(blocks.tolist()), key=lambda name: name == "original")
    for name in names:
        family = name.rpartition("_")[0]
        if family in _FAMILIES and f"{family}_map" not in values:
            values[f"{family}_map"] = np.where(np.char.startswith(blocks, f"{family}_"), aps, np.nan)
        values[f"{name}_map"] = np.where(blocks == name, aps, np.nan)
    return {name: outcomes for name, outcomes in values.items() if not np.isnan(outcomes).all()}


def write_per_query(path: Path, result: CopyResult) -> None:
    """Write a CSV with the columns query, block, ap, rank: the trapezoidal AP, and the first right reference's rank.

    Ranks count from 1; empty where none is among the candidates. The AP is empty for a query that is no copy. The file
    appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    aps, firsts = average_precisions(result.candidates), first_ranks(result.candidates)
    try:
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["query", "block", "ap", "rank"])
            for query, block, ap, first in zip(result.ids, result.blocks, aps.tolist(), firsts.tolist(), strict=True):
                writer.writerow([query, block, "" if np.isnan(ap) else ap, first + 1 if first >= 0 else ""])
    except OSError as error:
        raise DataError(f"the table of queries cannot be written to {path}: {error.strerror or error}") from None
