import logging
from pathlib import Path

import numpy as np
import pytest

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.features import Features
from patchssl.evaluate.knn import evaluate, score
from patchssl.evaluate.neighbours import choose_ks

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


def test_search_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = random_features(60, seed=4), random_features(31, seed=5)
    whole = evaluate(train, test, ks=[5], temperature=0.07).hits[5].top1
    monkeypatch.setattr("patchssl.evaluate.neighbours._CHUNK_NEIGHBOURS", 20)
    np.testing.assert_array_equal(evaluate(train, test, ks=[5], temperature=0.07).hits[5].top1, whole)


def test_a_class_without_training_images_counts_as_wrong_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    train = Features(np.eye(3, dtype=np.float32), np.array([1, 2, 3]))
    test = Features(np.eye(3, dtype=np.float32), np.array([1, 7, 3]))
    with caplog.at_level(logging.WARNING):
        result = evaluate(train, test, ks=[1], temperature=0.07)
    assert result.hits[1].top1.tolist() == [True, False, True]
    assert result.num_unknown == 1
    assert "1 of 3 test images are of 1 classes without training images (labels 7)" in caplog.text


def test_ks_of_the_protocol_are_cut_and_those_of_the_user_are_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_ks(None, (10, 20, 100, 200), 1000) == (10, 20, 100, 200)
        assert not caplog.records
        assert choose_ks(None, (10, 20, 100, 200), 30) == (10, 20)
        assert "30 training images are too few for k = 10, 20, 100, 200; evaluating k = 10, 20" in caplog.text
        assert choose_ks(None, (10, 20), 4) == (4,)
    assert choose_ks([20, 5, 5], (10,), 20) == (5, 20)
    with pytest.raises(ConfigError, match=r"k is 50, 60; allowed: 1 to 20"):
        choose_ks([50, 5, 60], (10,), 20)
    with pytest.raises(ConfigError, match="k is empty"):
        choose_ks([], (10,), 20)


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
    with pytest.raises(ConfigError, match="'dinov9' is unknown to k-NN; allowed: dino"):
        score(random_features(5, seed=0), random_features(5, seed=0), protocol="dinov9")


def test_features_of_two_models_are_refused() -> None:
    parts = [
        Features(np.ones((2, 2), np.float32), np.zeros(2, np.int64), None, {"model": {"weights_sha256": name * 64}})
        for name in "ab"
    ]
    with pytest.raises(DataError, match="both must come from one model"):
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
