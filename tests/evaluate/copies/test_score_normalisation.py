import numpy as np
import pytest

from patchssl.errors import ConfigError
from patchssl.evaluate.copies.score_normalisation import ScoreNormalisation


def test_worked_by_hand() -> None:
    similarities = np.array([[0.9, 0.6, 0.3, 0.0], [0.5, 0.5, 0.2, 0.1]], np.float32)
    np.testing.assert_allclose(ScoreNormalisation().biases(similarities), [0.6, 0.4], rtol=1e-6)
    np.testing.assert_allclose(ScoreNormalisation(beta=2, first=1, last=1).biases(similarities), [1.2, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(ScoreNormalisation(beta=0).biases(similarities), [0, 0])


def test_is_the_inner_product_of_appended_features() -> None:
    generator = np.random.default_rng(0)
    queries, references, training = (generator.normal(size=(num, 6)) for num in (5, 9, 20))
    similarities = -np.sort(-(queries @ training.T), axis=1).astype(np.float32)
    biases = ScoreNormalisation(beta=0.7, first=1, last=4).biases(similarities)
    appended = np.hstack([queries, -biases[:, None]]) @ np.hstack([references, np.ones((9, 1))]).T
    normalised = queries @ references.T - biases[:, None]
    np.testing.assert_allclose(normalised, appended, atol=1e-12)
    # The order of each query's references stays.
    np.testing.assert_array_equal(np.argsort(normalised), np.argsort(queries @ references.T))


def test_refuses_what_cannot_be() -> None:
    for first, last in ((-1, 2), (3, 2)):
        with pytest.raises(ConfigError, match="0 <= first <= last"):
            ScoreNormalisation(first=first, last=last)
    for beta in (-1.0, np.inf, np.nan):
        with pytest.raises(ConfigError, match="beta"):
            ScoreNormalisation(beta=beta)
    with pytest.raises(ConfigError, match="there are 2 training images"):
        ScoreNormalisation().biases(np.zeros((3, 2), np.float32))
