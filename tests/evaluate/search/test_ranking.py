"""Metrics of rankings, against tables worked by hand, slow definitions, and what must hold always."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from patchssl.errors import DataError
from patchssl.evaluate.search.ranking import (
    average_precision,
    micro_ap,
    precision_at_revisited,
    r_precision,
    ranks_of,
    recall_at,
    recall_at_precision,
    trapezoid_ap,
)

GOLDEN = Path(__file__).parents[2] / "golden"

ranked = st.integers(1, 12).flatmap(
    lambda num: st.tuples(st.lists(st.integers(0, 40), max_size=num, unique=True).map(sorted), st.just(num))
)


@pytest.mark.parametrize(
    ("ranks", "num", "trapezoid", "rectangular"),
    [
        ([0], 1, 1.0, 1.0),
        ([1], 1, 1 / 4, 1 / 2),
        ([2], 1, 1 / 6, 1 / 3),
        ([0, 2, 5], 3, (1 + (1 / 2 + 2 / 3) / 2 + (2 / 5 + 3 / 6) / 2) / 3, (1 + 2 / 3 + 3 / 6) / 3),
        ([0], 2, 1 / 2, 1 / 2),
        ([], 3, 0.0, 0.0),
    ],
)
def test_by_hand(ranks: Sequence[int], num: int, trapezoid: float, rectangular: float) -> None:
    assert trapezoid_ap(ranks, num) == pytest.approx(trapezoid, abs=1e-12)
    assert average_precision(ranks, num) == pytest.approx(rectangular, abs=1e-12)


def test_three_of_six_differ_as_published() -> None:
    """Ranks 0, 2, 5 of 3: 0.678 by trapezoids, 0.722 by rectangles."""
    assert trapezoid_ap([0, 2, 5], 3) == pytest.approx(0.6778, abs=5e-5)
    assert average_precision([0, 2, 5], 3) == pytest.approx(0.7222, abs=5e-5)


def test_trapezoids_agree_with_the_original() -> None:
    cases = json.loads((GOLDEN / "copydays_ap.json").read_text())
    assert len(cases) == 40
    for case in cases:
        assert trapezoid_ap(case["ranks"], case["positives"]) == pytest.approx(case["ap"], abs=1e-12)


def test_pairs_agree_with_the_original() -> None:
    case = json.loads((GOLDEN / "disc_micro_ap.json").read_text())
    truth = {tuple(pair) for pair in case["ground_truth"]}
    scores = [score for _, _, score in case["predictions"]]
    correct = [(query, reference) in truth for query, reference, _ in case["predictions"]]
    assert micro_ap(scores, correct, len(truth)) == pytest.approx(case["micro_ap"], abs=1e-9)
    found = recall_at_precision(scores, correct, len(truth), 0.9)
    assert found == pytest.approx(case["recall_at_precision_90"], abs=1e-9)


@given(ranked)
def test_rectangles_agree_with_the_definition(case: tuple[list[int], int]) -> None:
    ranks, num = case
    hits = np.isin(np.arange(41), ranks)
    slow = sum(hits[: rank + 1].mean() for rank in ranks) / num
    assert average_precision(ranks, num) == pytest.approx(slow, abs=1e-12)
    slow_at = sum(hits[: rank + 1].mean() for rank in ranks if rank < 10) / min(num, 10)
    assert average_precision(ranks, num, cutoff=10) == pytest.approx(slow_at, abs=1e-12)
    assert r_precision(ranks, num) == pytest.approx(hits[:num].sum() / num)
    assert recall_at(ranks, 3) == float(hits[:3].any())


@given(ranked)
def test_a_perfect_ranking_scores_one_and_nothing_scores_more(case: tuple[list[int], int]) -> None:
    ranks, num = case
    for metric in (trapezoid_ap, average_precision, r_precision):
        assert metric(range(num), num) == pytest.approx(1, abs=1e-12)
        assert 0 <= metric(ranks, num) <= 1 + 1e-12


@given(ranked, st.integers(0, 5))
def test_a_later_place_never_helps(case: tuple[list[int], int], later: int) -> None:
    ranks, num = case
    moved = [*ranks[:-1], ranks[-1] + later] if ranks else ranks
    for metric in (trapezoid_ap, average_precision, r_precision):
        assert metric(moved, num) <= metric(ranks, num) + 1e-12


def test_micro_ap_is_sklearns_where_all_pairs_are_predicted_and_no_scores_are_equal() -> None:
    generator = np.random.default_rng(0)
    scores, correct = generator.permutation(200) / 200, generator.random(200) < 0.2
    assert micro_ap(scores, correct, correct.sum()) == pytest.approx(average_precision_score(correct, scores))
    # A pair that was never predicted is never found.
    assert micro_ap(scores, correct, 2 * correct.sum()) == pytest.approx(average_precision_score(correct, scores) / 2)


def test_ties_never_help() -> None:
    scores, correct = np.zeros(10), np.arange(10) < 3
    assert micro_ap(scores, correct, 3) == pytest.approx((1 / 8 + 2 / 9 + 3 / 10) / 3)
    assert micro_ap(scores, correct[::-1], 3) == micro_ap(scores, correct, 3)
    assert recall_at_precision(scores, correct, 3, 0.9) == 0


def test_recall_at_precision_by_hand() -> None:
    scores, correct = [9, 8, 7, 6, 5, 4], [True, True, False, True, True, False]
    assert recall_at_precision(scores, correct, 5, 1.0) == pytest.approx(2 / 5)
    assert recall_at_precision(scores, correct, 5, 0.8) == pytest.approx(4 / 5)
    assert recall_at_precision([1.0], [False], 5, 0.1) == 0
    assert recall_at_precision([], [], 5, 0.1) == 0


@pytest.mark.parametrize(("ranks", "k", "value"), [([0, 1], 5, 1.0), ([0, 6], 5, 1 / 5), ([2], 10, 1 / 3), ([], 5, 0)])
def test_revisited_precision_stops_at_the_last_positive(ranks: list[int], k: int, value: float) -> None:
    assert precision_at_revisited(ranks, k) == pytest.approx(value)


def test_recall_and_ranks_of_hits() -> None:
    assert [list(ranks) for ranks in ranks_of(np.array([[True, False, True], [False, False, False]]))] == [[0, 2], []]
    assert recall_at([], 5) == 0
    assert recall_at([4], 5) == 1
    assert recall_at([5], 5) == 0


@pytest.mark.parametrize(("ranks", "num"), [([0], 0), ([0, 1], 1), ([1, 1], 3), ([2, 1], 3), ([-1], 1)])
def test_refused(ranks: list[int], num: int) -> None:
    for metric in (trapezoid_ap, average_precision, r_precision):
        with pytest.raises(DataError):
            metric(ranks, num)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 scores"):
        micro_ap([np.nan, 1], [True, False], 1)
    with pytest.raises(DataError, match="shape"):
        micro_ap([1, 1], [True], 1)
