import json
from pathlib import Path

import numpy as np
import pytest

from patchssl.data.groundtruth import Pairs, Predictions
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.copies.predictions import evaluate_predictions
from patchssl.evaluate.copies.row import make_copy_row
from patchssl.evaluate.outcomes import Scored

GOLDEN = Path(__file__).parents[2] / "golden" / "disc_micro_ap.json"


def predictions(*pairs: tuple[str, str, float]) -> Predictions:
    queries, references, scores = zip(*pairs, strict=True)
    return Predictions(Path("p.csv"), queries, references, scores)


def pairs(**references: tuple[str, ...]) -> Pairs:
    return Pairs(Path("gt.csv"), references, {})


def scored(found: Predictions, truth: Pairs, protocol: str = "disc21", k: int | None = None) -> Scored:
    result = evaluate_predictions(found, truth, protocol=protocol, k=k)
    return make_copy_row(result, features_s=0, device="cpu", seed=0)


def test_is_what_sscds_script_computes() -> None:
    golden = json.loads(GOLDEN.read_text())
    truth = pairs(**{query: (match,) for query, match in golden["ground_truth"]})
    row = scored(predictions(*(tuple(pair) for pair in golden["predictions"])), truth).row
    assert row.headline == "micro_ap"
    names = {"micro_ap": "micro_ap", "recall_at_precision_90": "recall_at_precision_90"}
    names |= {"recall_at_1": "recall_at_rank1", "recall_at_10": "recall_at_rank10"}
    for ours, theirs in names.items():
        assert row.metrics[ours].value == pytest.approx(golden[theirs], abs=1e-9)


def test_worked_by_hand() -> None:
    truth = pairs(a=("1",), b=("2", "3"), c=())
    found = predictions(
        ("a", "1", 0.9), ("a", "2", 0.8), ("b", "2", 0.7), ("b", "1", 0.7), ("c", "3", 0.6), ("d", "3", 1)
    )
    row = scored(found, truth, "generic").row
    # d stands in no row of the ground truth and is no copy; of equal scores b,1 comes before b,2.
    assert row.metrics["micro_ap"].value == pytest.approx((1 / 2 + 2 / 5) / 3)
    assert row.metrics["map"].value == pytest.approx((1 + (0 + 1 / 2) / 2 / 2) / 2)
    assert row.metrics["recall_at_1"].value == 0.5
    assert row.metrics["recall_at_precision_90"].value == 0
    assert row.settings["num_negative_queries"] == 2
    assert (row.metrics["map"].num, row.metrics["micro_ap"].num) == (2, 4)
    first = scored(found, truth, "generic", k=1).row
    assert first.metrics["micro_ap"].value == pytest.approx(1 / 2 / 3)
    assert first.comparability != row.comparability


def test_rows_know_their_files() -> None:
    truth = pairs(a=("1",), b=("2",))
    perfect = scored(predictions(("a", "1", 2.0), ("b", "2", -3.0)), truth)
    assert {metric.value for metric in perfect.row.metrics.values()} == {1.0}
    assert perfect.row.model["spec"] == "p.csv"
    assert perfect.row.dataset["name"] == "gt"
    np.testing.assert_array_equal(perfect.outcomes.ids, ["a", "b"])
    other = scored(predictions(("a", "1", 2.0), ("b", "2", -4.0)), truth)
    assert other.row.model["weights_sha256"] != perfect.row.model["weights_sha256"]
    assert other.row.comparability == perfect.row.comparability
    assert scored(predictions(("a", "1", 2.0)), pairs(a=("1",))).row.comparability != perfect.row.comparability


def test_refuses_what_cannot_be_compared() -> None:
    truth = pairs(a=("1",))
    with pytest.raises(DataError, match=r"p.csv \(x\) and gt.csv \(a\) name no query in common"):
        scored(predictions(("x", "1", 1.0)), truth)
    with pytest.raises(ConfigError, match="k is 0"):
        scored(predictions(("a", "1", 1.0)), truth, k=0)
    with pytest.raises(DataError, match="none of the 1 queries is a copy"):
        scored(predictions(("a", "1", 1.0)), pairs(a=()))
