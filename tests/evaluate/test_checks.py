import logging

import numpy as np
import pytest

from patchssl.errors import DataError
from patchssl.evaluate.checks import check_features, check_ids, check_pair, check_parts, place_labels, warn_of_leaks
from patchssl.evaluate.features import Features


def part(num: int, ids: list[str] | None = None, dim: int = 2) -> Features:
    names = None if ids is None else np.array(ids, dtype=np.str_)
    return Features(np.ones((num, dim), np.float32), np.arange(num) % 2, names)


def test_places_of_labels_worked_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        targets = place_labels(np.array([90, -3, 90, 4]), np.array([4, 5, 90, -3, 91, -7]))
    assert targets.classes.tolist() == [-3, 4, 90]
    assert targets.train.tolist() == [2, 0, 2, 1]
    assert targets.test.tolist() == [1, -1, 2, 0, -1, -1]
    assert targets.num_unknown == 3
    assert "3 of 6 test images are of 3 classes without training images (labels -7, 5, 91)" in caplog.text


def test_places_lead_back_to_the_labels(caplog: pytest.LogCaptureFixture) -> None:
    generator = np.random.default_rng(0)
    train, test = generator.integers(-50, 50, 200), generator.integers(-50, 50, 100)
    targets = place_labels(train, test)
    np.testing.assert_array_equal(targets.classes[targets.train], train)
    known = np.array([label in set(train.tolist()) for label in test])
    np.testing.assert_array_equal(targets.test >= 0, known)
    np.testing.assert_array_equal(targets.classes[targets.test[known]], test[known])
    caplog.clear()
    place_labels(train, train)
    assert not caplog.records


def test_ids_that_occur_twice_are_named() -> None:
    check_ids("training", part(3))
    check_ids("training", part(3, ["a", "b", "A"]))
    with pytest.raises(DataError, match=r"2 ids of the training features occur more than once \(a, b\); each image"):
        check_ids("training", part(6, ["a", "b", "c", "b", "a", "a"]))
    with pytest.raises(DataError, match=r"6 ids .*\(0, 1, 2, 3, 4, …\)"):
        check_ids("test", part(12, [str(row // 2) for row in range(12)]))


def test_features_must_be_finite_labelled_and_some() -> None:
    check_features("test", part(1))
    with pytest.raises(DataError, match=r"the test features are empty: shape \(4, 0\)"):
        check_features("test", part(4, dim=0))
    with pytest.raises(DataError, match="the test features have no labels"):
        check_features("test", Features(np.ones((2, 2), np.float32)))
    features = np.ones((3, 2), np.float32)
    features[1, 0] = -np.inf
    with pytest.raises(DataError, match=r"1 of 3 test features hold NaN or infinite values \(row 1\)"):
        check_features("test", Features(features, np.zeros(3, np.int64)))


def test_both_parts_are_checked_and_must_be_of_one_width() -> None:
    check_pair(part(3, dim=4), part(2, dim=4))
    with pytest.raises(DataError, match="training features are 4 wide, test features 5"):
        check_pair(part(3, dim=4), part(2, dim=5))
    with pytest.raises(DataError, match="of the test features occur more than once"):
        check_pair(part(2), part(2, ["a", "a"]))


def test_features_made_with_different_settings_are_refused() -> None:
    def made(**settings: object) -> Features:
        return Features(np.ones((2, 2), np.float32), np.arange(2), None, {"settings": settings})

    check_pair(made(token="cls", precision="fp32"), made(token="cls", precision="bf16", image_px=224))
    with pytest.raises(DataError, match=r"made differently \(image_px 224 and 32; token 'cls' and 'mean'\); make both"):
        check_pair(made(token="cls", image_px=224), made(token="mean", image_px=32))


def test_a_test_image_counts_as_found_again_by_id_and_features(caplog: pytest.LogCaptureFixture) -> None:
    features = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    train = Features(features, np.zeros(5, np.int64), np.array(["cat/1", "cat/2", "dog/1", "dog/2", "dog/3"]))
    # The same id with other features, the same features under another id, and two that are the same but for rounding.
    tests = np.stack([features[0] + 1, features[1], features[3] * (1 + 1e-7), features[4]])
    test = Features(tests, np.zeros(4, np.int64), np.array(["cat/1", "other", "dog/2", "dog/3"]))
    with caplog.at_level(logging.WARNING):
        assert warn_of_leaks(train, test) == 2
    assert "2 of 4 test images have the id and the features of a training image (dog/2, dog/3)" in caplog.text
    caplog.clear()
    for one, other in ((train, Features(tests)), (Features(features), test)):
        assert warn_of_leaks(one, other) == 0
    assert warn_of_leaks(train, Features(tests[:1], None, test.ids[:1] if test.ids is not None else None)) == 0
    assert not caplog.records


def test_parts_of_a_search_need_no_labels_and_one_make() -> None:
    def made(dim: int = 2, **settings: object) -> Features:
        return Features(np.ones((3, dim), np.float32), meta={"settings": settings})

    check_parts({"database": made(image_px=32, precision="fp32"), "queries": made(image_px=32, precision="bf16")})
    check_parts({"labelled": made()})
    with pytest.raises(DataError, match="database features are 2 wide, distractors features 3"):
        check_parts({"database": made(), "distractors": made(3), "queries": made()})
    with pytest.raises(
        DataError, match=r"database and queries features were made differently \(token 'cls' and 'gem'\)"
    ):
        check_parts({"database": made(token="cls"), "distractors": made(), "queries": made(token="gem")})
    with pytest.raises(DataError, match="the queries features are empty"):
        check_parts({"database": made(), "queries": Features(np.ones((0, 2), np.float32))})
