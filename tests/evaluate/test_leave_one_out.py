import dataclasses
import logging

import numpy as np
import pytest

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate import knn
from patchssl.evaluate.features import Features
from patchssl.evaluate.leave_one_out import evaluate, score


def drawn(num: int, *, seed: int, labels: tuple[int, ...] = (-3, 4, 90)) -> Features:
    generator = np.random.default_rng(seed)
    return Features(generator.normal(size=(num, 5)).astype(np.float32), generator.choice(labels, num))


def test_by_hand() -> None:
    # On a circle, at 0, 10, 25 and 60 degrees: the neighbour of each is 1, 0, 1, 2.
    angles = np.deg2rad([0, 10, 25, 60])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    result = evaluate(Features(features, np.array([1, 1, 2, 2])), ks=[1], temperature=0.07)
    assert result.hits[1].top1.tolist() == [True, True, False, True]
    assert result.counted.all()


@pytest.mark.parametrize("k", [1, 5, 39])
def test_equals_knn_with_each_image_taken_out(k: int) -> None:
    part = drawn(40, seed=k)
    assert part.labels is not None
    hits = evaluate(part, ks=[k], temperature=0.2).hits[k]
    for row in range(40):
        others = np.arange(40) != row
        train = Features(part.features[others], part.labels[others])
        alone = Features(part.features[~others], part.labels[~others])
        expected = knn.evaluate(train, alone, ks=[k], temperature=0.2).hits[k]
        assert (hits.top1[row], hits.top5[row]) == (expected.top1[0], expected.top5[0])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_an_image_never_finds_itself_among_its_duplicates(k: int) -> None:
    # Six copies of one image: the nearest others of each are the lowest rows but its own.
    labels = np.array([0, 1, 0, 2, 2, 1])
    part = Features(np.ones((6, 3), np.float32), labels)
    hits = evaluate(part, ks=[k], temperature=0.07).hits[k]
    for row in range(6):
        votes = np.bincount([labels[other] for other in range(6) if other != row][:k], minlength=3)
        assert hits.top1[row] == (np.argmax(votes) == labels[row])


def test_a_pair_of_duplicates_finds_each_other() -> None:
    part = drawn(30, seed=1)
    twice = Features(np.repeat(part.features, 2, axis=0), np.arange(60) // 2)
    assert evaluate(twice, ks=[1], temperature=0.07).hits[1].top1.all()


def test_an_image_alone_in_its_class_leaves_the_mean_and_still_votes(caplog: pytest.LogCaptureFixture) -> None:
    features = np.array([[1, 0], [1, 0.05], [0, 1], [0.05, 1], [-1, -1], [0.3, 1]], np.float32)
    part = Features(features, np.array([0, 0, 1, 1, 7, 9]), np.array(list("abcdef")))
    with caplog.at_level(logging.WARNING):
        scored = score(part, ks=[1])
    assert "2 of 6 images are alone in their class; they are left out of the mean" in caplog.text
    np.testing.assert_array_equal(scored.outcomes.values["top1@k1"], [1, 1, 1, 1, np.nan, np.nan])
    metric = scored.row.metrics["top1@k1"]
    assert (metric.num, metric.value) == (4, 1.0)
    assert scored.row.settings["num_alone_in_class"] == 2
    # Moved onto image d, the lone f becomes its neighbour, and is wrong.
    features[5] = features[3]
    moved = score(part, ks=[1])
    np.testing.assert_array_equal(moved.outcomes.values["top1@k1"], [1, 1, 1, 0, np.nan, np.nan])
    assert moved.row.metrics["top1@k1"].value == 0.75


def test_row() -> None:
    part = drawn(50, seed=2)
    row = score(part, seed=3).row
    assert (row.task, row.protocol, row.headline) == ("knn", "leave-one-out", "top1@k20")
    assert row.settings["k"] == [10, 20]
    assert row.dataset["splits"] == {"labelled": 50}
    assert (row.dataset["num_images"], row.dataset["num_classes"]) == (50, 3)
    assert row.details["chance"] == {
        "top1@k10": pytest.approx(1 / 3),
        "top5@k10": 1.0,
        "top1@k20": pytest.approx(1 / 3),
        "top5@k20": 1.0,
    }
    again = score(part, seed=3).row
    assert again.to_json() == dataclasses.replace(row, created=again.created, seconds=again.seconds).to_json()
    assert score(part, temperature=0.1).row.comparability != row.comparability
    assert score(Features(part.features * 2, part.labels)).row.comparability == row.comparability


def test_the_order_of_images_does_not_matter() -> None:
    part = drawn(60, seed=5)
    assert part.labels is not None
    order = np.random.default_rng(0).permutation(60)
    assert score(Features(part.features[order], part.labels[order])).row.metrics == score(part).row.metrics


def test_too_few_images() -> None:
    with pytest.raises(ConfigError, match="k is 30; allowed: 1 to 29"):
        score(drawn(30, seed=0), ks=[30])
    assert score(drawn(8, seed=0)).row.settings["k"] == [7]
    with pytest.raises(DataError, match="each of the 3 classes has one image only"):
        score(Features(np.eye(3, dtype=np.float32), np.array([5, 1, 3])))
    with pytest.raises(DataError, match="there is one labelled image only"):
        score(drawn(1, seed=0))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Features(np.ones((3, 2), np.float32)), "the labelled features have no labels"),
        (Features(np.full((3, 2), np.nan, np.float32), np.zeros(3, np.int64)), "3 of 3 labelled features hold NaN"),
        (Features(np.ones((2, 2), np.float32), np.zeros(2, np.int64), np.array(["a", "a"])), "occur more than once"),
    ],
)
def test_features_that_cannot_be_evaluated_are_refused(part: Features, words: str) -> None:
    with pytest.raises(DataError, match=words):
        score(part)
