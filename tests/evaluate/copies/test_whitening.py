from pathlib import Path

import faiss
import numpy as np
import pytest

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.copies.whitening import fit
from patchssl.evaluate.search.index import normalise_rows

GOLDEN = Path(__file__).parents[2] / "golden" / "whitening.npz"


def drawn(num: int = 300, dim: int = 8, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(num, dim)) @ generator.normal(size=(dim, dim)) + 3
    return mixed.astype(np.float32)


def test_uncentred_is_what_dino_computes() -> None:
    with np.load(GOLDEN, allow_pickle=False) as file:
        learned, features, wanted = file["fit_features"], file["features"], file["centred_then_whitened"]
    found = fit(learned, centred=False).apply(features)
    assert found.shape == wanted.shape

    def by_column(values: np.ndarray) -> np.ndarray:
        # The order of the dimensions means nothing, as their signs.
        signed = values * np.sign(values[np.abs(values).argmax(axis=0), np.arange(values.shape[1])])
        ordered: np.ndarray = signed[:, np.argsort(np.abs(values).sum(axis=0))]
        return ordered

    np.testing.assert_allclose(by_column(found), by_column(wanted), rtol=1e-3, atol=1e-3)


def test_worked_by_hand() -> None:
    # Second moments about zero are 4 and 1, the mean is (0, 0); two axes, the longer first.
    learned = np.array([[2, 1], [-2, -1], [2, -1], [-2, 1]], np.float32)
    for centred in (False, True):
        whitening = fit(learned, centred=centred)
        np.testing.assert_allclose(np.abs(whitening.apply(np.array([[6, 3]], np.float32))), [[3, 3]], rtol=1e-6)
    # All at the mean of (3, 0) but for 1 to either side: moments about zero are 10 and 1, about the mean 1 and 1.
    learned = np.array([[4, 1], [2, -1], [4, -1], [2, 1]], np.float32)
    probe = np.array([[5, 0]], np.float32)
    np.testing.assert_allclose(np.abs(fit(learned, centred=False).apply(probe)).max(), 2 / np.sqrt(10), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(fit(learned, centred=True).apply(probe)), 2, rtol=1e-6)


def test_centred_gives_the_cosines_of_faiss() -> None:
    learned, probes = drawn(400, 12), drawn(20, 12, seed=1)
    transform = faiss.PCAMatrix(12, 5, -0.5)
    transform.train(learned)
    theirs = normalise_rows(transform.apply(probes))
    ours = normalise_rows(fit(learned, centred=True, dim=5).apply(probes))
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=2e-4)


def test_the_whitened_set_has_unit_variance() -> None:
    learned = drawn()
    whitened = fit(learned, centred=True).apply(learned).astype(np.float64)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(whitened.T @ whitened / len(learned), np.eye(8), atol=1e-3)


def test_small_eigenvalues_are_floored_or_left_out() -> None:
    learned = drawn(50, 6)
    learned[:, 3:] = learned[:, :3]  # three directions are empty
    assert fit(learned, centred=True).dim == 3
    uncentred = fit(learned, centred=False)
    assert uncentred.dim == 6
    assert np.isfinite(uncentred.apply(learned)).all()
    scales = np.linalg.norm(uncentred.projection, axis=0)
    assert scales.max() / scales.min() == pytest.approx(1e-5**-0.5, rel=1e-3)


def test_few_images_span_few_dimensions() -> None:
    assert fit(drawn(5, 16), centred=True, dim=512).dim == 4
    assert fit(drawn(5, 16), centred=False).dim == 16


def test_refuses_sets_that_teach_nothing() -> None:
    with pytest.raises(DataError, match="cannot be learned from 1 images"):
        fit(drawn(1), centred=True)
    for centred in (True, False):
        constant = np.zeros((9, 4), np.float32)
        with pytest.raises(DataError, match="all have the same features"):
            fit(constant, centred=centred)
    with pytest.raises(DataError, match="all have the same features"):
        fit(np.full((9, 4), 0.3, np.float32), centred=True)
    with pytest.raises(ConfigError, match="0 dimensions"):
        fit(drawn(), centred=True, dim=0)
    with pytest.raises(DataError, match="3 wide, the whitening is for 8"):
        fit(drawn(), centred=True).apply(np.zeros((2, 3), np.float32))
    assert fit(drawn(), centred=True).apply(np.zeros((0, 8), np.float32)).shape == (0, 8)
