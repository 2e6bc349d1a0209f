import dataclasses
import logging

import numpy as np
import pytest

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate import knn
from patchssl.evaluate.features import Features
from patchssl.evaluate.few_shot import choose_ks, draw_rows, evaluate, num_drawn, score


def drawn(num: int, *, seed: int, classes: int = 4, ids: bool = False) -> Features:
    """Features about the centre of their class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num) % classes
    features = 0.7 * np.eye(classes, 6)[labels] + generator.normal(size=(num, 6))
    names = np.array([f"{row:03d}.jpg" for row in range(num)]) if ids else None
    return Features(features.astype(np.float32), labels, names)


def test_a_draw_takes_so_many_of_each_class_or_all() -> None:
    train = Features(np.zeros((9, 2), np.float32), np.array([5, 5, 5, 5, -2, -2, 70, 5, 5]))
    for draw in range(4):
        rows = draw_rows(train, shots=2, draw=draw, seed=0)
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert {4, 5, 6} < set(rows.tolist())
        assert len(rows) == 5
        assert draw_rows(train, shots=6, draw=draw, seed=0).tolist() == list(range(9))
    assert train.labels is not None
    assert [num_drawn(train.labels, shots) for shots in (1, 2, 6, 99)] == [3, 5, 9, 9]


def test_draws_follow_from_seed_and_number_and_more_shots_hold_fewer() -> None:
    train = drawn(200, seed=0)
    first = draw_rows(train, shots=5, draw=0, seed=3)
    assert first.tolist() == draw_rows(train, shots=5, draw=0, seed=3).tolist()
    assert first.tolist() != draw_rows(train, shots=5, draw=1, seed=3).tolist()
    assert first.tolist() != draw_rows(train, shots=5, draw=0, seed=4).tolist()
    assert set(first.tolist()) < set(draw_rows(train, shots=9, draw=0, seed=3).tolist())


def test_every_image_of_a_class_is_drawn_equally_often() -> None:
    train = drawn(40, seed=0)  # 10 images of each of 4 classes
    counts = np.zeros(40)
    for draw in range(600):
        counts[draw_rows(train, shots=3, draw=draw, seed=0)] += 1
    # Binomial of 600 and 0.3: 180, standard deviation 11.2.
    assert np.abs(counts - 180).max() < 4 * 11.2


def test_draws_follow_ids_and_not_the_order_of_the_set() -> None:
    train, test = drawn(60, seed=1, ids=True), drawn(30, seed=2)
    assert train.labels is not None
    assert train.ids is not None
    order = np.random.default_rng(0).permutation(60)
    shuffled = Features(train.features[order], train.labels[order], train.ids[order])
    names = [
        set(part.ids[draw_rows(part, shots=4, draw=1, seed=0)].tolist())
        for part in (train, shuffled)
        if part.ids is not None
    ]
    assert names[0] == names[1]
    assert score(train, test, shots=4).row.metrics == score(shuffled, test, shots=4).row.metrics


def test_values_are_those_of_plain_knn_on_each_draw() -> None:
    train, test = drawn(120, seed=3), drawn(50, seed=4)
    assert train.labels is not None
    scored = score(train, test, shots=6, draws=3, ks=[1, 7], temperature=0.2, seed=5)
    for k in (1, 7):
        top1 = []
        for draw in range(3):
            rows = draw_rows(train, shots=6, draw=draw, seed=5)
            part = Features(train.features[rows], train.labels[rows])
            top1.append(knn.evaluate(part, test, ks=[k], temperature=0.2).hits[k].top1)
        name = f"top1@k{k}"
        assert scored.row.details["draws"][name] == pytest.approx([found.mean() for found in top1])
        assert len(set(scored.row.details["draws"][name])) > 1
        np.testing.assert_allclose(scored.outcomes.values[name], np.mean(top1, axis=0))
        metric = scored.row.metrics[name]
        assert metric.value == pytest.approx(np.mean(top1))
        assert metric.ci95_low <= metric.value <= metric.ci95_high
        assert metric.num == 50


def test_the_interval_holds_the_draws_too() -> None:
    train, test = drawn(400, seed=6), drawn(2000, seed=7)
    row = score(train, test, shots=1, draws=6, ks=[1]).row
    metric, values = row.metrics["top1@k1"], row.details["draws"]["top1@k1"]
    # Of 2,000 test images alone it would be under 0.05 wide.
    assert np.std(values) > 0.02
    assert metric.ci95_high - metric.ci95_low > 2 * 1.96 * 0.8 * np.std(values) / np.sqrt(6)


def test_all_images_in_every_draw_is_plain_knn() -> None:
    train, test = drawn(60, seed=8), drawn(30, seed=9)
    few, plain = score(train, test, shots=99, draws=2, ks=[5]).row, knn.score(train, test, ks=[5]).row
    assert few.metrics["top1@k5"].value == plain.metrics["top1@k5"].value
    assert few.settings["num_short_class"] == 4


def test_defaults_settings_and_what_is_compared(caplog: pytest.LogCaptureFixture) -> None:
    train, test = drawn(200, seed=10), drawn(40, seed=11)
    with caplog.at_level(logging.WARNING):
        row = score(train, test).row
    wanted = {"shots": 16, "draws": 5, "k": [10, 20, 64], "k_clipped": [100, 200], "num_drawn": 64, "temperature": 0.07}
    assert wanted.items() <= row.settings.items()
    assert "a draw has 64 training images, too few for k = 10, 20, 100, 200; evaluating k = 10, 20, 64" in caplog.text
    assert row.headline == "top1@k20"
    assert row.protocol == "few-shot"
    assert row.details["chance"]["top1@k20"] == 0.25
    assert score(train, test, draws=2, seed=3).row.comparability == row.comparability
    assert score(train, test, shots=8).row.comparability != row.comparability
    assert score(train, test, temperature=0.1).row.comparability != row.comparability
    again = dataclasses.replace(score(train, test).row, created="", seconds={})
    assert again.to_json() == dataclasses.replace(row, created="", seconds={}).to_json()


def test_every_k_is_clipped() -> None:
    assert choose_ks([3, 50, 40, 3], 20) == (3, 20)
    assert choose_ks(None, 7) == (7,)
    for wrong, words in (([], "k is empty"), ([0, 3], "k is 0, 3; each must be at least 1")):
        with pytest.raises(ConfigError, match=words):
            choose_ks(wrong, 20)


def test_short_and_unknown_classes_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    train, test = drawn(40, seed=12), drawn(20, seed=13, classes=5)
    with caplog.at_level(logging.WARNING):
        result = evaluate(train, test, shots=11, draws=3, ks=[3], temperature=0.07, seed=0)
    assert result.num_short == 4
    assert result.num_unknown == 4
    assert [record.getMessage() for record in caplog.records] == [
        "4 of 20 test images are of 1 classes without training images (labels 4) and count as wrong",
        "4 of 4 classes have fewer than 11 training images; every draw takes all of theirs",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shots": 0}, "shots is 0; it must be at least 1"),
        ({"draws": 0}, "draws is 0; it must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        score(drawn(20, seed=0), drawn(20, seed=1), **changes)  # type: ignore[arg-type]


def test_features_that_cannot_be_evaluated_are_refused() -> None:
    with pytest.raises(DataError, match="training features have no labels"):
        score(Features(np.ones((3, 2), np.float32)), drawn(4, seed=0))
    with pytest.raises(DataError, match="are 6 wide, test features 5"):
        score(drawn(4, seed=0), Features(np.ones((4, 5), np.float32), np.zeros(4, np.int64)))
