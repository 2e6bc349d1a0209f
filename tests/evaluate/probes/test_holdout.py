import logging

import numpy as np
import pytest

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.probes.holdout import hold_out


def test_numbers_of_each_class_worked_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    # 40 of class 0 give 4, 25 of class 1 round(2.5) = 2, 5 of class 2 at least 1, 2 of class 3 also 1.
    classes = np.repeat([0, 1, 2, 3], [40, 25, 5, 2])
    held = hold_out(classes, 0.1, seed=0)
    assert np.bincount(classes[held]).tolist() == [4, 2, 1, 1]
    # However large the fraction, one of each class stays in training.
    assert np.bincount(classes[~hold_out(classes, 0.99, seed=0)]).tolist() == [1, 1, 1, 1]
    assert not caplog.records


def test_draw_follows_the_seed_and_not_the_order_of_classes() -> None:
    classes = np.random.default_rng(0).integers(0, 5, 300)
    held = hold_out(classes, 0.2, seed=1)
    np.testing.assert_array_equal(held, hold_out(classes, 0.2, seed=1))
    assert (held != hold_out(classes, 0.2, seed=2)).any()
    np.testing.assert_array_equal(held, hold_out(classes * 10 - 7, 0.2, seed=1))


def test_every_image_is_held_out_about_as_often() -> None:
    classes = np.repeat([0, 1], [20, 30])
    times = sum(hold_out(classes, 0.1, seed=seed).astype(int) for seed in range(2000))
    assert np.all(np.abs(times / 2000 - 0.1) < 0.03)


def test_single_images_stay_in_training_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    classes = np.array([0, 1, 1, 2])
    with caplog.at_level(logging.WARNING):
        held = hold_out(classes, 0.5, seed=0)
    assert held[[0, 3]].tolist() == [False, False]
    assert held[1:3].sum() == 1
    assert "2 of 3 classes have a single training image" in caplog.text
    with pytest.raises(DataError, match="none of the 3 classes has two training images"):
        hold_out(np.arange(3), 0.1, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fractions_out_of_range_are_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="allowed: above 0 and below 1"):
        hold_out(np.array([0, 0]), fraction, seed=0)
