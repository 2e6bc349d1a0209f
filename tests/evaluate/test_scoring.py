from typing import Any

import numpy as np
import pytest

from patchssl.evaluate.features import Features
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.results import Metric
from patchssl.evaluate.scoring import chance, make_row

PART = Features(np.eye(4, dtype=np.float32), np.array([7, 7, 9, 30]), np.array(list("abcd")))


def row_of(values: dict[str, Any], **changes: Any) -> Scored:
    given: dict[str, Any] = {
        "task": "task",
        "protocol": "p",
        "parts": {"train": PART, "test": PART},
        "values": values,
        "headline": next(iter(values)),
        "meaning": {},
        "settings": {},
        "seconds": {},
        "device": "cpu",
        "seed": 0,
    }
    return make_row(**{**given, **changes})


def test_chance_by_hand() -> None:
    assert chance(["top1", "top5", "top1@k20", "top5@k3", "map_easy", "top10"], 10) == {
        "top1": 0.1,
        "top5": 0.5,
        "top1@k20": 0.1,
        "top5@k3": 0.3,
    }
    assert chance(["top1", "top5"], 3) == {"top1": pytest.approx(1 / 3), "top5": 1.0}
    assert chance([], 3) == chance(["top1"], 0) == {}


def test_chance_is_what_guessing_gives() -> None:
    generator = np.random.default_rng(0)
    guesses = np.argsort(generator.uniform(size=(20_000, 8)), axis=1)
    hits = {"top1": (guesses[:, :1] == 3).any(axis=1), "top5": (guesses[:, :5] == 3).any(axis=1)}
    for name, expected in chance(hits, 8).items():
        assert hits[name].mean() == pytest.approx(expected, abs=0.01)


def test_classes_and_chance_stand_in_the_row() -> None:
    row = row_of({"top1": np.ones(4, bool), "other": np.ones(4, bool)}).row
    assert row.dataset["num_classes"] == 3
    assert row.details == {"chance": {"top1": pytest.approx(1 / 3)}}
    assert row_of({"other": np.ones(4, bool)}, details={"x": 1}).row.details == {"x": 1}


def test_images_that_do_not_count_leave_the_mean_and_stay_in_the_outcomes() -> None:
    scored = row_of({"top1": np.array([1.0, np.nan, 0.0, 0.0])})
    assert scored.row.metrics["top1"].value == pytest.approx(1 / 3)
    assert scored.row.metrics["top1"].num == 3
    np.testing.assert_array_equal(scored.outcomes.values["top1"], [1, np.nan, 0, 0])


def test_a_given_interval_replaces_the_bootstrap() -> None:
    values = {"top1": np.array([1.0, 0, 0, 0]), "top5": np.array([1.0, 1, 0, 0])}
    plain, given = row_of(values).row, row_of(values, intervals={"top1": (0.1, 0.9)}).row
    assert (given.metrics["top1"].ci95_low, given.metrics["top1"].ci95_high) == (0.1, 0.9)
    assert given.metrics["top5"] == plain.metrics["top5"]


def test_data_without_a_training_part() -> None:
    row = row_of({"top1": np.ones(4)}, parts={"labelled": PART}).row
    assert row.dataset["splits"] == {"labelled": 4}
    assert row.dataset["num_classes"] == 3
    assert row.comparability != row_of({"top1": np.ones(4)}).row.comparability


def test_a_metric_that_is_no_mean_over_images_stands_beside_the_others() -> None:
    micro = Metric(value=0.3, ci95_low=0.1, ci95_high=0.4, num=9)
    scored = row_of({"map": np.array([1.0, np.nan, 0.0, 0.5])}, whole={"micro_ap": micro})
    assert scored.row.metrics["micro_ap"] == micro
    assert scored.row.metrics["map"].value == 0.5
    assert set(scored.outcomes.values) == {"map"}


def test_parts_have_names_of_their_own_and_the_last_is_tested() -> None:
    few = Features(PART.features[:2], np.array([7, 7]), np.array(["q", "r"]), {"dataset": {"name": "tested"}})
    scored = row_of({"map": np.ones(2)}, parts={"references": PART, "distractors": PART, "queries": few})
    assert scored.row.dataset["splits"] == {"references": 4, "distractors": 4, "queries": 2}
    assert scored.row.dataset["name"] == "tested"
    assert scored.outcomes.ids is few.ids
