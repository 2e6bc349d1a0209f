import json
from pathlib import Path

import numpy as np
import pytest

from patchssl.evaluate.copies.candidates import (
    POOLED,
    average_precisions,
    candidates_of_neighbours,
    exact_cosines,
    first_ranks,
    make_candidates,
    pooled_metrics,
    recall_at_precision_90,
    recalls,
)
from patchssl.evaluate.search.ranking import micro_ap, recall_at_precision

GOLDEN = Path(__file__).parents[2] / "golden"


def test_average_precision_is_that_of_dinos_script() -> None:
    cases = json.loads((GOLDEN / "copydays_ap.json").read_text())
    places, scores, correct = [], [], []
    for place, case in enumerate(cases):
        for rank in range(20):
            places.append(place)
            scores.append(1 - rank / 20)
            correct.append(rank in case["ranks"])
    shuffled = np.random.default_rng(0).permutation(len(places))
    candidates = make_candidates(
        np.array(places)[shuffled],
        np.array(scores)[shuffled],
        np.array(correct)[shuffled],
        np.array([case["positives"] for case in cases]),
    )
    np.testing.assert_allclose(average_precisions(candidates), [case["ap"] for case in cases], rtol=0, atol=1e-12)
    wanted = [case["ranks"][0] if case["ranks"] else -1 for case in cases]
    np.testing.assert_array_equal(first_ranks(candidates), wanted)


def test_pooled_metrics_are_those_of_sscds_script() -> None:
    golden = json.loads((GOLDEN / "disc_micro_ap.json").read_text())
    right = {(query, match) for query, match in golden["ground_truth"]}
    queries = sorted({pair[0] for pair in golden["ground_truth"]} | {pair[0] for pair in golden["predictions"]})
    candidates = make_candidates(
        np.array([queries.index(query) for query, _, _ in golden["predictions"]]),
        np.array([score for _, _, score in golden["predictions"]]),
        np.array([(query, match) in right for query, match, _ in golden["predictions"]]),
        np.array([sum(query == pair[0] for pair in right) for query in queries]),
    )
    metrics = {"micro_ap": POOLED["rectangle"], "recall_at_precision_90": recall_at_precision_90}
    found = pooled_metrics(candidates, metrics, seed=0, num_resamples=20)
    for name in metrics:
        assert found[name].value == pytest.approx(golden[name], abs=1e-9)
        assert found[name].ci95_low <= found[name].value <= found[name].ci95_high
        assert found[name].num == len(queries)
    for k in (1, 10):
        assert np.nanmean(recalls(candidates, k)) == pytest.approx(golden[f"recall_at_rank{k}"], abs=1e-9)


def test_neighbours_are_cut_with_wrong_ones_first_among_equals() -> None:
    similarities = np.array([[0.9, 0.5, 0.5, 0.5]], np.float32)
    rows = np.array([[4, 0, 1, 2]])
    found = candidates_of_neighbours(similarities, rows, [np.array([0])], np.array([1]), k=3)
    np.testing.assert_array_equal(found.correct, [False, False, False])
    found = candidates_of_neighbours(similarities, rows, [np.array([0])], np.array([1]), k=4)
    np.testing.assert_array_equal(found.correct, [False, False, False, True])
    assert average_precisions(found) == pytest.approx([1 / 8])


def test_neighbours_that_an_index_did_not_find_are_no_candidates() -> None:
    similarities = np.array([[0.9, -np.inf, -np.inf], [0.2, 0.1, -np.inf]], np.float32)
    rows = np.array([[3, -1, -1], [1, 0, -1]])
    found = candidates_of_neighbours(
        similarities, rows, [np.array([5]), np.array([0])], np.array([1, 1]), k=3, biases=np.array([0.5, -0.5])
    )
    np.testing.assert_array_equal(found.places, [0, 1, 1])
    np.testing.assert_allclose(found.scores, [0.4, 0.7, 0.6], atol=1e-6)
    np.testing.assert_array_equal(found.correct, [False, False, True])


def test_queries_that_are_no_copies_leave_means_and_count_in_one_list() -> None:
    candidates = make_candidates(np.array([0, 1]), np.array([0.5, 0.9]), np.array([True, False]), np.array([1, 0]))
    np.testing.assert_array_equal(average_precisions(candidates), [1, np.nan])
    np.testing.assert_array_equal(recalls(candidates, 1), [1, np.nan])
    found = pooled_metrics(candidates, {"micro_ap": POOLED["rectangle"]}, seed=0, num_resamples=50)
    # The negative query scores higher, and stands before the only right pair.
    assert found["micro_ap"].value == 0.5
    trapezoid = pooled_metrics(candidates, {"micro_ap": POOLED["trapezoid"]}, seed=0, num_resamples=50)
    assert trapezoid["micro_ap"].value == 0.25


def test_the_interval_is_that_of_lists_made_anew_from_drawn_queries() -> None:
    generator = np.random.default_rng(3)
    num_queries, num_pairs = 12, 90
    places = generator.integers(num_queries, size=num_pairs)
    scores = generator.integers(0, 15, num_pairs) / 15  # with ties
    correct = generator.random(num_pairs) < 0.3
    num_positives = np.bincount(places, correct, minlength=num_queries).astype(int) + (np.arange(num_queries) % 3 == 0)
    candidates = make_candidates(places, scores, correct, num_positives)
    found = pooled_metrics(
        candidates, {"ap": POOLED["rectangle"], "recall": recall_at_precision_90}, seed=7, num_resamples=200
    )
    drawn_aps, drawn_recalls = [], []
    resampling = np.random.default_rng(7)
    for _ in range(200):
        counts = resampling.multinomial(num_queries, np.full(num_queries, 1 / num_queries))
        chosen = np.repeat(np.arange(num_queries), counts)
        pairs = np.concatenate([np.flatnonzero(places == query) for query in chosen])
        total = int(num_positives[chosen].sum())
        drawn_aps.append(micro_ap(scores[pairs], correct[pairs], total))
        drawn_recalls.append(recall_at_precision(scores[pairs], correct[pairs], total, 0.9))
    for name, drawn in (("ap", drawn_aps), ("recall", drawn_recalls)):
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (found[name].ci95_low, found[name].ci95_high) == pytest.approx((low, high), abs=1e-12)


def test_equal_rows_have_equal_cosines_wherever_they_lie() -> None:
    generator = np.random.default_rng(0)
    vector = generator.normal(size=(1, 384)).astype(np.float32)
    queries = generator.normal(size=(7, 384)).astype(np.float32)
    database = [np.repeat(vector, 30, axis=0), generator.normal(size=(3, 384)).astype(np.float32)]
    rows = np.tile(np.arange(33), (7, 1))
    cosines = exact_cosines(queries, database, rows)
    assert (cosines[:, :30] == cosines[:, :1]).all()
    wanted = (
        queries
        / np.linalg.norm(queries, axis=1, keepdims=True)
        @ (database[1] / np.linalg.norm(database[1], axis=1)[:, None]).T
    )
    np.testing.assert_allclose(cosines[:, 30:], wanted, atol=1e-6)
