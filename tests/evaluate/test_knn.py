import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.features import Features
from patchssl.evaluate.knn import PROTOCOLS, evaluate, score

GOLDEN = Path(__file__).parents[1] / "golden" / "knn.npz"


def golden() -> tuple[Features, Features, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        train = Features(file["train_features"], file["train_labels"])
        return train, Features(file["test_features"], file["test_labels"]), file["results"]


def slow_knn(train: Features, test: Features, k: int, temperature: float) -> tuple[float, float]:
    """DINO's definition, written once more with plain loops."""
    assert train.labels is not None
    assert test.labels is not None
    top1 = top5 = 0
    bank = [row / np.linalg.norm(row) for row in train.features.astype(float)]
    for feature, label in zip(test.features.astype(float), test.labels, strict=True):
        query = feature / np.linalg.norm(feature)
        near = sorted(((float(query @ row), place) for place, row in enumerate(bank)), key=lambda it: (-it[0], it[1]))
        scores = {int(name): 0.0 for name in train.labels}
        for similarity, place in near[:k]:
            scores[int(train.labels[place])] += np.exp(similarity / temperature)
        order = sorted(scores, key=lambda name: (-scores[name], name))
        top1 += order[0] == label
        top5 += label in order[: min(5, k)]
    return top1 / len(test), top5 / len(test)


def random_features(num: int, *, seed: int, dim: int = 6, labels: tuple[int, ...] = (-3, 4, 90)) -> Features:
    generator = np.random.default_rng(seed)
    return Features(generator.normal(size=(num, dim)).astype(np.float32), generator.choice(labels, num))


def test_equals_every_row_of_the_reference() -> None:
    train, test, results = golden()
    assert len(results) == 12
    for temperature in np.unique(results[:, 0]):
        expected = results[results[:, 0] == temperature]
        hits = evaluate(train, test, ks=expected[:, 1].astype(int).tolist(), temperature=temperature).hits
        for _, k, top1, top5 in expected:
            assert hits[int(k)].top1.sum() == round(top1 * len(test) / 100)
            assert hits[int(k)].top5.sum() == round(top5 * len(test) / 100)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_equals_the_definition_with_labels_that_leave_gaps(k: int) -> None:
    train, test = random_features(40, seed=1), random_features(17, seed=2)
    hits = evaluate(train, test, ks=[k], temperature=0.2).hits[k]
    assert (hits.top1.mean(), hits.top5.mean()) == pytest.approx(slow_knn(train, test, k, 0.2))


def test_a_training_image_finds_itself_and_scale_does_not_matter() -> None:
    train = random_features(50, seed=3)
    scaled = Features(train.features * 37, train.labels)
    assert evaluate(train, scaled, ks=[1], temperature=0.07).hits[1].top1.all()


def test_equal_images_vote_in_the_order_of_the_training_set() -> None:
    same = np.ones((4, 3), np.float32)
    train = Features(same, np.array([8, 5, 5, 8]))
    hits = evaluate(train, Features(same[:1], np.array([8])), ks=[1, 2, 3], temperature=0.07).hits
    # First the 8 of row 0; then 8 and 5 are level and the lower class wins; then 5 leads.
    assert [bool(hits[k].top1[0]) for k in (1, 2, 3)] == [True, False, False]


def test_a_class_without_training_images_counts_as_wrong_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    train = Features(np.eye(3, dtype=np.float32), np.array([1, 2, 3]))
    test = Features(np.eye(3, dtype=np.float32), np.array([1, 7, 3]))
    with caplog.at_level(logging.WARNING):
        result = evaluate(train, test, ks=[1], temperature=0.07)
    assert result.hits[1].top1.tolist() == [True, False, True]
    assert result.num_unknown == 1
    assert "1 of 3 test images are of 1 classes without training images (labels 7)" in caplog.text


def broken(rows: list[int]) -> Features:
    features = np.ones((9, 2), np.float32)
    features[rows, 1] = np.nan
    return Features(features, np.zeros(9, np.int64), np.array([f"{row}.jpg" for row in range(9)]))


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (broken([]), broken([2, 4]), r"2 of 9 test features hold NaN or infinite values \(2.jpg, 4.jpg\)"),
        (broken(list(range(9))), broken([]), r"9 of 9 training features .* 4.jpg, …\)"),
        (random_features(5, seed=0, dim=3), random_features(5, seed=0, dim=4), "are 3 wide, test features 4"),
        (random_features(0, seed=0), random_features(5, seed=0), r"training features are empty: shape \(0, 6\)"),
        (random_features(5, seed=0), random_features(0, seed=0), "test features are empty"),
        (Features(np.ones((2, 2), np.float32)), random_features(5, seed=0, dim=2), "training features have no labels"),
    ],
)
def test_features_that_cannot_be_evaluated_are_refused(train: Features, test: Features, words: str) -> None:
    with pytest.raises(DataError, match=words):
        score(train, test)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        score(random_features(5, seed=0), random_features(5, seed=0), temperature=temperature)


def test_unknown_protocols_are_refused() -> None:
    with pytest.raises(ConfigError, match="'dinov9' is unknown to k-NN; allowed: dino, dinov2;"):
        score(random_features(5, seed=0), random_features(5, seed=0), protocol="dinov9")


def test_features_of_two_models_are_refused() -> None:
    parts = [
        Features(np.ones((2, 2), np.float32), np.zeros(2, np.int64), None, {"model": {"weights_sha256": name * 64}})
        for name in "ab"
    ]
    with pytest.raises(DataError, match="all must come from one model"):
        score(*parts)


def test_row_of_the_reference() -> None:
    train, test, _ = golden()
    row = score(train, test, seed=3).row
    assert list(row.metrics) == [f"{name}@k{k}" for k in (10, 20, 100, 200) for name in ("top1", "top5")]
    assert row.headline == "top1@k20"
    metric = row.metrics["top1@k20"]
    assert metric.value == 0.805
    assert metric.num == 200
    assert 0.74 < metric.ci95_low < metric.value < metric.ci95_high < 0.87
    assert row.settings["k"] == [10, 20, 100, 200]
    assert row.dataset["splits"] == {"train": 600, "test": 200}
    assert row.seed == 3
    assert train.labels is not None
    assert row.dataset["num_classes"] == len(np.unique(train.labels))
    assert row.details["num_test_in_train"] == 0
    assert row.details["chance"]["top1@k20"] == pytest.approx(1 / row.dataset["num_classes"])


def test_comparability_follows_meaning_and_nothing_else() -> None:
    train, test, _ = golden()
    row = score(train, test).row
    other_model = Features(train.features[:, ::-1].copy(), train.labels), Features(test.features * 2, test.labels)
    assert score(*other_model).row.comparability == row.comparability
    assert score(*other_model).row.model["weights_sha256"] != row.model["weights_sha256"]
    assert score(train, test, ks=[20], seed=5).row.comparability == row.comparability
    assert score(train, test, ks=[10]).row.comparability != row.comparability
    assert score(train, test, temperature=0.2).row.comparability != row.comparability
    assert test.labels is not None
    fewer = Features(test.features[:-1], test.labels[:-1])
    assert score(train, fewer).row.comparability != row.comparability
    meta = {"settings": {"token": "mean", "image_px": 32}}
    assert score(train, Features(test.features, test.labels, None, meta)).row.comparability != row.comparability
    assert score(train, test, ks=[5, 1]).row.headline == "top1@k1"


@pytest.mark.parametrize("protocol", ["dino", "dinov2"])
def test_every_row_of_the_reference_by_either_protocol(protocol: str) -> None:
    train, test, results = golden()
    for temperature in np.unique(results[:, 0]):
        expected = results[results[:, 0] == temperature]
        ks = expected[:, 1].astype(int).tolist()
        metrics = score(train, test, protocol=protocol, ks=ks, temperature=temperature).row.metrics
        for _, k, top1, top5 in expected:
            assert 100 * metrics[f"top1@k{int(k)}"].value == pytest.approx(top1, abs=1e-9)
            assert 100 * metrics[f"top5@k{int(k)}"].value == pytest.approx(top5, abs=1e-9)


def test_dinov2_is_dino_where_no_class_number_is_left_out() -> None:
    train, test = (random_features(num, seed=num, labels=tuple(range(12))) for num in (150, 70))
    first, second = (
        evaluate(train, test, ks=[1, 10, 60], temperature=0.3, protocol=name).hits for name in ("dino", "dinov2")
    )
    for k in (1, 10, 60):
        np.testing.assert_array_equal(first[k].top1, second[k].top1)
        np.testing.assert_array_equal(first[k].top5, second[k].top5)
    rows = [score(train, test, protocol=name).row for name in ("dino", "dinov2")]
    assert rows[0].metrics == rows[1].metrics
    assert rows[0].comparability != rows[1].comparability


def test_numbers_without_training_images_fill_the_top_five_of_dinov2() -> None:
    train = Features(np.eye(6, dtype=np.float32), np.array([2, 9, 2, 2, 2, 9]))
    # The four nearest of both are those of class 2. Class 9 has no votes, nor have 0, 1, 3 … 8, which dinov2 takes for
    # classes and names first. Class 3 of the second image has no training image: it is missed by either.
    query = np.array([9, 0, 8, 8, 8, 1], np.float32)
    test = Features(np.stack([query, query]), np.array([9, 3]))
    dino, dinov2 = (evaluate(train, test, ks=[4], temperature=1.0, protocol=name).hits[4] for name in PROTOCOLS)
    assert dino.top1.tolist() == dinov2.top1.tolist() == [False, False]
    assert dino.top5.tolist() == [True, False]
    assert dinov2.top5.tolist() == [False, False]


@pytest.mark.parametrize("labels", [[-1, 0, 1], [0, 1, 2_000_000_000]])
def test_labels_that_are_no_class_numbers_are_refused_by_dinov2_only(labels: list[int]) -> None:
    part = Features(np.eye(3, dtype=np.float32), np.array(labels))
    assert evaluate(part, part, ks=[1], temperature=0.07).hits[1].top1.all()
    with pytest.raises(DataError, match=f"training labels are {labels[0]} to {labels[-1]}, and dinov2 takes every"):
        evaluate(part, part, ks=[1], temperature=0.07, protocol="dinov2")


def test_huge_and_negative_labels_are_classes_like_others() -> None:
    train, test = random_features(60, seed=6, labels=(0, 1, 2)), random_features(30, seed=7, labels=(0, 1, 2))
    assert train.labels is not None
    assert test.labels is not None
    names = np.array([-(2**62), -7, 2**62])
    renamed = (Features(part.features, names[part.labels]) for part in (train, test) if part.labels is not None)
    assert score(*renamed).row.metrics == score(train, test).row.metrics


def test_a_class_without_test_images_changes_no_outcome(caplog: pytest.LogCaptureFixture) -> None:
    train, test = random_features(60, seed=8), random_features(30, seed=9, labels=(4, 90))
    with caplog.at_level(logging.WARNING):
        row = score(train, test, ks=[5]).row
    assert not caplog.records
    assert row.metrics["top1@k5"].value == pytest.approx(slow_knn(train, test, 5, 0.07)[0])
    assert row.dataset["num_classes"] == 3


@pytest.mark.parametrize("protocol", ["dino", "dinov2"])
def test_the_order_of_training_images_does_not_matter(protocol: str) -> None:
    train, test = (random_features(num, seed=num, labels=(0, 4, 90)) for num in (80, 40))
    assert train.labels is not None
    order = np.random.default_rng(0).permutation(80)
    shuffled = Features(train.features[order], train.labels[order])
    assert score(shuffled, test, protocol=protocol).row.metrics == score(train, test, protocol=protocol).row.metrics


def test_evaluating_twice_gives_one_row() -> None:
    train, test, _ = golden()
    rows = [dataclasses.replace(score(train, test, seed=4).row, created="", seconds={}) for _ in range(2)]
    assert rows[0].to_json() == rows[1].to_json()


def test_test_images_among_the_training_images_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    train = random_features(20, seed=12)
    ids = np.array([f"{row}.jpg" for row in range(20)])
    named = Features(train.features, train.labels, ids)
    with caplog.at_level(logging.WARNING):
        assert score(named, named, ks=[3]).row.details["num_test_in_train"] == 20
    assert "20 of 20 test images have the id and the features of a training image (0.jpg, " in caplog.text


def test_ids_that_stand_twice_are_refused() -> None:
    train = random_features(3, seed=0)
    with pytest.raises(DataError, match=r"1 ids of the training features occur more than once \(a\)"):
        score(Features(train.features, train.labels, np.array(["a", "b", "a"])), train)
