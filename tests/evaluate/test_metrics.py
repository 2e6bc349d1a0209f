import numpy as np
import pytest

from patchssl.errors import DataError
from patchssl.evaluate.metrics import bootstrap_interval, class_hits, knn_hits, two_way_interval


def slow_ranks(
    similarities: np.ndarray, classes: np.ndarray, targets: np.ndarray, num_classes: int, k: int, temperature: float
) -> list[int]:
    """The definition, one query and one vote at a time."""
    ranks = []
    for query, target in enumerate(targets):
        scores = [0.0] * num_classes
        for place in range(k):
            scores[classes[query, place]] += np.exp(float(similarities[query, place]) / temperature)
        order = sorted(range(num_classes), key=lambda name: (-scores[name], name))
        ranks.append(order.index(target))
    return ranks


def test_votes_worked_by_hand() -> None:
    # With T = 1/ln 2 a vote of similarity s weighs 2^s: class 2 has 2, class 0 has 1 + 1.5157 = 2.5157, class 1 has 1.
    similarities = np.array([[1.0, 0.6, 0.0, 0.0]], np.float32)
    classes = np.array([[2, 0, 0, 1]])
    expected = {1: [2], 2: [2, 0], 3: [0, 2], 4: [0, 2, 1]}
    for k, order in expected.items():
        for rank, target in enumerate(order):
            hits = knn_hits(
                similarities, classes, np.array([target]), num_classes=3, ks=[k], temperature=1 / np.log(2)
            )[k]
            assert hits.top1[0] == (rank == 0)
            assert hits.top5[0] == (rank < min(5, k))


def test_equal_scores_go_to_the_lower_class() -> None:
    similarities, classes = np.full((1, 2), 0.5, np.float32), np.array([[3, 1]])
    top1 = [
        knn_hits(similarities, classes, np.array([target]), num_classes=5, ks=[2], temperature=0.07)[2].top1[0]
        for target in range(5)
    ]
    assert top1 == [False, True, False, False, False]


def test_classes_without_votes_fill_the_top_five_from_the_lowest() -> None:
    similarities, classes = np.full((1, 5), 0.5, np.float32), np.full((1, 5), 9)
    top5 = [
        knn_hits(similarities, classes, np.array([target]), num_classes=10, ks=[5], temperature=0.07)[5].top5[0]
        for target in range(10)
    ]
    assert top5 == [True] * 4 + [False] * 5 + [True]


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
def test_equals_the_definition(temperature: float) -> None:
    generator = np.random.default_rng(0)
    similarities = -np.sort(-generator.uniform(-1, 1, (40, 30)).astype(np.float32), axis=1)
    classes, targets = generator.integers(0, 7, (40, 30)), generator.integers(0, 7, 40)
    hits = knn_hits(similarities, classes, targets, num_classes=7, ks=[30, 1, 4, 12], temperature=temperature)
    for k in (1, 4, 12, 30):
        ranks = np.array(slow_ranks(similarities, classes, targets, 7, k, temperature))
        np.testing.assert_array_equal(hits[k].top1, ranks < 1)
        np.testing.assert_array_equal(hits[k].top5, ranks < min(5, k))


def test_memory_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    similarities = -np.sort(-generator.uniform(-1, 1, (23, 8)).astype(np.float32), axis=1)
    classes, targets = generator.integers(0, 4, (23, 8)), generator.integers(0, 4, 23)
    whole = knn_hits(similarities, classes, targets, num_classes=4, ks=[3, 8], temperature=0.1)
    monkeypatch.setattr("patchssl.evaluate.metrics._CHUNK_VALUES", 30)
    parts = knn_hits(similarities, classes, targets, num_classes=4, ks=[3, 8], temperature=0.1)
    for k in (3, 8):
        np.testing.assert_array_equal(whole[k].top1, parts[k].top1)
        np.testing.assert_array_equal(whole[k].top5, parts[k].top5)


def test_a_tiny_temperature_makes_the_nearest_decide() -> None:
    similarities, classes = np.array([[0.9, 0.8, 0.8]], np.float32), np.array([[1, 0, 0]])
    hits = knn_hits(similarities, classes, np.array([1]), num_classes=2, ks=[3], temperature=1e-5)
    assert hits[3].top1[0]


def test_unknown_targets_are_never_hit_and_no_queries_give_no_values() -> None:
    similarities, classes = np.full((2, 6), 0.5, np.float32), np.zeros((2, 6), np.int64)
    hits = knn_hits(similarities, classes, np.array([-1, 0]), num_classes=1, ks=[6], temperature=0.07)[6]
    assert hits.top1.tolist() == [False, True]
    assert hits.top5.tolist() == [False, True]
    empty = knn_hits(similarities[:0], classes[:0], np.zeros(0, np.int64), num_classes=1, ks=[6], temperature=0.07)
    assert empty[6].top1.shape == (0,)


@pytest.mark.parametrize(("ks", "temperature"), [([], 0.07), ([0], 0.07), ([7], 0.07), ([3], 0.0), ([3], float("nan"))])
def test_impossible_settings_are_refused(ks: list[int], temperature: float) -> None:
    similarities, classes = np.full((1, 6), 0.5, np.float32), np.zeros((1, 6), np.int64)
    with pytest.raises(ValueError, match=r"allowed: 1 to 6|above 0"):
        knn_hits(similarities, classes, np.array([0]), num_classes=1, ks=ks, temperature=temperature)


def test_interval_of_hits_is_the_binomial_one() -> None:
    values = np.arange(400) < 100
    low, high = bootstrap_interval(values, seed=0)
    # Mean 0.25, standard error sqrt(0.25 * 0.75 / 400) = 0.02165.
    assert low == pytest.approx(0.25 - 1.96 * 0.02165, abs=0.004)
    assert high == pytest.approx(0.25 + 1.96 * 0.02165, abs=0.004)


def test_interval_equals_resampling_one_by_one() -> None:
    values = np.random.default_rng(3).uniform(size=60) ** 3
    generator = np.random.default_rng(4)
    means = [generator.choice(values, size=60).mean() for _ in range(4000)]
    assert bootstrap_interval(values, seed=0) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.008)


def test_interval_is_repeatable_and_closes_on_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).uniform(size=50)
    first = bootstrap_interval(values, seed=7)
    assert first == bootstrap_interval(values, seed=7)
    assert first != bootstrap_interval(values, seed=8)
    monkeypatch.setattr("patchssl.evaluate.metrics._CHUNK_VALUES", 5000)
    assert first == bootstrap_interval(values, seed=7)
    assert bootstrap_interval(np.ones(5), seed=0) == (1.0, 1.0)
    low, high = bootstrap_interval(values, seed=0, level=0.5)
    assert first[0] <= low <= values.mean() <= high <= first[1]


@pytest.mark.parametrize(("values", "words"), [([], "no values"), ([0.1, float("nan")], "1 of 2 values")])
def test_interval_of_nothing_or_nan_is_refused(values: list[float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        bootstrap_interval(np.array(values), seed=0)


def test_softmax_votes_are_those_of_exp_but_for_a_factor_of_the_query() -> None:
    generator = np.random.default_rng(5)
    similarities = -np.sort(-generator.uniform(-1, 1, (200, 30)).astype(np.float32), axis=1)
    classes, targets = generator.integers(0, 9, (200, 30)), generator.integers(0, 9, 200)
    given = (similarities, classes, targets)
    for temperature in (0.07, 1.0):
        plain = knn_hits(*given, num_classes=9, ks=[1, 10, 30], temperature=temperature)
        soft = knn_hits(*given, num_classes=9, ks=[1, 10, 30], temperature=temperature, softmax=True)
        for k in plain:
            np.testing.assert_array_equal(soft[k].top1, plain[k].top1)
            np.testing.assert_array_equal(soft[k].top5, plain[k].top5)


def slow_two_way(values: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Rows and columns drawn one by one, and every cell where they meet."""
    generator = np.random.default_rng(seed)
    rows, columns = values.shape
    return np.array(
        [
            values[np.ix_(generator.integers(0, rows, rows), generator.integers(0, columns, columns))].mean()
            for _ in range(num_resamples)
        ]
    )


def test_two_way_interval_by_hand() -> None:
    # Of two rows, 0 and 1, a resample has the mean 0, 1/2 or 1 with probability 1/4, 1/2, 1/4; the columns are alike.
    values = np.array([[0, 0, 0], [1, 1, 1]], bool)
    assert two_way_interval(values, seed=0) == (0.0, 1.0)
    assert two_way_interval(values, seed=0, level=0.4) == (0.5, 0.5)
    assert two_way_interval(values.T, seed=0, level=0.4) == two_way_interval(values[:, :2].T, seed=0, level=0.4)


def test_two_way_interval_equals_resampling_one_by_one() -> None:
    generator = np.random.default_rng(1)
    # Rows and columns both matter, and no cell is like another.
    values = generator.normal(size=(6, 1)) + generator.normal(size=(1, 40)) + generator.normal(size=(6, 40))
    expected = np.quantile(slow_two_way(values, 6000, seed=2), [0.025, 0.975])
    assert two_way_interval(values, seed=0, num_resamples=6000) == pytest.approx(expected, abs=0.06)
    # Far wider than if the draws were all there could be.
    low, high = two_way_interval(values, seed=0)
    narrow = bootstrap_interval(values.mean(axis=0), seed=0)
    assert high - low > 1.5 * (narrow[1] - narrow[0])


def test_two_way_interval_of_one_row_is_that_of_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).uniform(size=50)
    assert two_way_interval(values[None], seed=7) == pytest.approx(bootstrap_interval(values, seed=7), abs=1e-12)
    table = np.random.default_rng(1).uniform(size=(3, 50)) < 0.4
    whole = two_way_interval(table, seed=7)
    assert whole[0] <= table.mean() <= whole[1]
    monkeypatch.setattr("patchssl.evaluate.metrics._CHUNK_VALUES", 300)
    assert two_way_interval(table, seed=7) == whole
    assert two_way_interval(np.ones((3, 5)), seed=0) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [(np.empty((0, 3)), "no values"), (np.empty((2, 0)), "no values"), (np.array([[1.0], [np.nan]]), "1 of 2 values")],
)
def test_two_way_interval_of_nothing_or_nan_is_refused(values: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        two_way_interval(values, seed=0)


def test_class_hits_worked_by_hand() -> None:
    scores = np.array([[3.0, 1.0, 2.0, 0.0, -1.0, -2.0, -3.0]] * 5)
    hits = class_hits(scores, np.array([0, 2, 4, 5, 7]))
    # The classes stand in the order 0, 2, 1, 3, 4, 5, 6; there is no class 7.
    assert hits["top1"].tolist() == [True, False, False, False, False]
    assert hits["top5"].tolist() == [True, True, True, False, False]


def test_class_hits_equal_the_definition() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, (200, 9)).astype(np.float32)  # with many ties
    targets = generator.integers(-2, 11, 200)
    hits = class_hits(scores, targets)
    for row, target, top1, top5 in zip(scores, targets, hits["top1"], hits["top5"], strict=True):
        order = sorted(range(9), key=lambda name: (-row[name], name))
        assert top1 == (order[0] == target)
        assert top5 == (target in order[:5])


def test_class_hits_of_few_classes_and_no_images() -> None:
    hits = class_hits(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([0, -1]))
    # All of two classes are among the first five, an unknown one never.
    assert hits["top1"].tolist() == [False, False]
    assert hits["top5"].tolist() == [True, False]
    assert class_hits(np.empty((0, 3)), np.empty(0, np.int64))["top5"].shape == (0,)
