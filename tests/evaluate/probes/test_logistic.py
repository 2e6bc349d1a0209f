import warnings

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from patchssl.evaluate.probes.logistic import GRID, Tried, fit, search, try_value

Data = tuple[np.ndarray, np.ndarray]


def data(num: int = 120, dim: int = 5, num_classes: int = 3, seed: int = 0) -> Data:
    """Classes about overlapping means, far from the origin."""
    generator = np.random.default_rng(seed)
    classes = np.arange(num) % num_classes
    means = np.random.default_rng(9).normal(size=(num_classes, dim))
    return (generator.normal(size=(num, dim)) * 2 + means[classes] + 7).astype(np.float32), classes


def minimum(features: np.ndarray, classes: np.ndarray, c: float) -> np.ndarray:
    """Log-odds (M, C) at the minimum of the definition, found without scikit-learn and without centring."""
    num_classes = classes.max() + 1
    shape = (features.shape[1] + 1, num_classes)
    inputs = np.concatenate((features.astype(float), np.ones((len(features), 1))), axis=1)

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        scores = inputs @ weights
        scores -= scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        rows = np.arange(len(classes))
        penalised = weights * (np.arange(shape[0]) < shape[0] - 1)[:, None]
        loss = -c * np.log(probabilities[rows, classes]).sum() + (penalised**2).sum() / 2
        probabilities[rows, classes] -= 1
        return loss, (c * inputs.T @ probabilities + penalised).ravel()

    done = minimize(value, np.zeros(shape).ravel(), jac=True, method="BFGS", options={"gtol": 1e-6, "maxiter": 5000})
    scores: np.ndarray = inputs @ done.x.reshape(shape)
    return scores


def probabilities(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    normalised: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return normalised


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("c", [1e-4, 0.01, 1.0])
def test_equals_the_minimum_of_the_definition(num_classes: int, c: float) -> None:
    features, classes = data(num_classes=num_classes)
    # Of two classes scikit-learn penalises the difference of their weights, twice the penalty of both.
    expected = minimum(features, classes, c / 2 if num_classes == 2 else c)
    got = fit(features, classes, c).scores(features)
    np.testing.assert_allclose(probabilities(got), probabilities(expected), atol=2e-3)


def test_two_classes_worked_by_hand() -> None:
    # With log-odds v x the minimum of C · 2 · ln(1 + exp(-v)) + v² / 2 is where 2 C / (1 + exp(v)) = v.
    model = fit(np.array([[-1.0], [1.0]], np.float32), np.array([0, 1]), 0.5)
    v = model.weights[0, 1] - model.weights[0, 0]
    assert 1 / (1 + np.exp(v)) == pytest.approx(v, abs=1e-3)
    assert model.weights[0, 0] == -model.weights[0, 1]
    assert model.intercepts.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_equals_plain_scikit_learn() -> None:
    features, classes = data(300, 8, 4)
    test, _ = data(100, 8, 4, seed=1)
    for c in GRID[::8]:
        plain = LogisticRegression(C=c, max_iter=10_000, tol=1e-8).fit(features.astype(float), classes)
        np.testing.assert_allclose(
            probabilities(fit(features, classes, c).scores(test)), plain.predict_proba(test), atol=5e-3
        )


def test_permuting_classes_permutes_scores_and_scale_is_made_up_by_c() -> None:
    features, classes = data()
    scores = fit(features, classes, 0.1).scores(features)
    permutation = np.array([2, 0, 1])
    permuted = fit(features, permutation[classes], 0.1).scores(features)
    np.testing.assert_allclose(probabilities(permuted)[:, permutation], probabilities(scores), atol=1e-3)
    scaled = fit(features * 1000, classes, 0.1e-6).scores(features * 1000)
    np.testing.assert_allclose(probabilities(scaled), probabilities(scores), atol=1e-3)
    huge = fit(features * np.float32(1e25), classes, 1e-48).scores(features * np.float32(1e25))
    assert np.mean(huge.argmax(1) == classes) > 0.5


def test_separable_classes_and_equal_features() -> None:
    classes = np.arange(30) % 3
    separable = np.eye(3, dtype=np.float32)[classes]
    assert (fit(separable, classes, 1.0).scores(separable).argmax(1) == classes).all()
    same = fit(np.ones((6, 2), np.float32), np.array([0, 1, 1, 1, 2, 2]), 1.0).scores(np.ones((1, 2), np.float32))
    np.testing.assert_allclose(probabilities(same), [[1 / 6, 1 / 2, 1 / 3]], atol=1e-3)


def test_search_finds_what_the_whole_grid_gives() -> None:
    features, classes = data(200, 8, 4)
    held = data(200, 8, 4, seed=1)
    best, tried = search(lambda c: try_value((features, classes), held, c))
    losses, accuracies = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for c in GRID:
            model = LogisticRegression(C=c, max_iter=10_000, tol=1e-7).fit(features.astype(float) - 7, classes)
            losses.append(log_loss(held[1], model.predict_proba(held[0].astype(float) - 7)))
            accuracies.append(model.score(held[0].astype(float) - 7, held[1]))
    assert best.log_loss == pytest.approx(min(losses), abs=1e-3)
    assert len(tried) < 20
    for value in tried:
        place = int(np.argmin(np.abs(np.log10(GRID) - np.log10(value.c))))
        assert value.log_loss == pytest.approx(losses[place], abs=1e-3)
        assert value.top1 == pytest.approx(accuracies[place], abs=0.011)


def test_grid_is_the_protocols() -> None:
    assert len(GRID) == 45
    assert (GRID[0], GRID[-1]) == pytest.approx((1e-6, 1e5))
    np.testing.assert_allclose(np.diff(np.log10(GRID)), 0.25)


def summit(place: int, grid: list[float]) -> tuple[Tried, list[int]]:
    """Search where accuracy has its summit at a place, and what was tried."""
    asked: list[int] = []

    def measure(c: float) -> Tried:
        asked.append(grid.index(c))
        distance = abs(grid.index(c) - place)
        return Tried(c, 0.9 - 0.01 * distance, 0.1 * distance, 1)

    return search(measure, grid)[0], asked


def test_any_single_summit_is_found_and_little_is_tried_beyond_it() -> None:
    grid = [float(value) for value in range(1, 46)]
    for place in range(len(grid)):
        best, asked = summit(place, grid)
        assert best.c == grid[place]
        assert len(asked) == len(set(asked)) <= 12 + 4
        assert max(asked) <= place + 8


def test_of_equal_log_losses_the_stronger_regularisation_counts_and_a_plateau_does_not_stop_the_search() -> None:
    best, tried = search(lambda c: Tried(c, 0.5, 1.0, 1))
    assert best.c == GRID[0]
    assert len(tried) == 12 + 2
    best, tried = search(lambda c: Tried(c, 1.0, abs(np.log10(c) - 1), 1))
    assert best.c == pytest.approx(10)
    assert max(value.c for value in tried) == pytest.approx(100)
    # Accuracy that rises by chance where the log-loss rises is no reason to go on.
    assert search(lambda c: Tried(c, np.log10(c), abs(np.log10(c) - 1), 1))[0].c == pytest.approx(10)


def test_held_out_numbers_follow_their_definition() -> None:
    features, classes = data()
    held, held_classes = data(40, seed=2)
    tried = try_value((features, classes), (held, held_classes), 0.1)
    expected = probabilities(fit(features, classes, 0.1).scores(held).astype(float))
    assert tried.top1 == np.mean(expected.argmax(1) == held_classes)
    assert tried.log_loss == pytest.approx(-np.log(expected[np.arange(40), held_classes]).mean())
