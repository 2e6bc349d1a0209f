"""Features find the images of a ground truth by name, in any order, and every mismatch is told."""

import logging

import numpy as np
import pytest
from numpy.typing import NDArray

from patchssl.errors import DataError
from patchssl.evaluate.features import Features
from patchssl.evaluate.queries.alignment import name_of, rows_by_name

NAMES = ("i0", "i1", "i2")


def named(features: NDArray[np.float32], names: list[str], *, num_unreadable: int = 0) -> Features:
    return Features(features, ids=np.array(names), meta={"dataset": {"num_unreadable": num_unreadable}})


def drawn(names: list[str], *, num_unreadable: int = 0) -> Features:
    return named(np.ones((len(names), 2), np.float32), names, num_unreadable=num_unreadable)


@pytest.mark.parametrize("ids", [["i2", "i0", "i1"], ["i2.jpg", "i0.jpg", "i1.png"], ["jpg/i2.jpg", "i0", "/a/i1.x"]])
def test_names_paths_and_files_are_found(ids: list[str]) -> None:
    assert rows_by_name("database", drawn(ids), NAMES).tolist() == [1, 2, 0]


def test_a_name_itself_counts_before_what_is_left_of_it() -> None:
    # `a.b` is a name, and without its suffix it would be another.
    assert rows_by_name("database", drawn(["a.b", "a"]), ("a", "a.b")).tolist() == [1, 0]
    assert name_of("x/a.b.jpg") == "a.b"


def test_without_ids_the_order_is_that_of_the_names() -> None:
    assert rows_by_name("query", Features(np.ones((3, 2), np.float32)), NAMES).tolist() == [0, 1, 2]


def test_unreadable_images_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert rows_by_name("query", drawn(["i2"], num_unreadable=2), NAMES).tolist() == [-1, -1, 0]
    assert "2 query images could not be read and leave the mean: i0, i1" in caplog.text
    with pytest.raises(DataError, match="2 images of the ground truth have no query feature"):
        rows_by_name("query", drawn(["i2"], num_unreadable=1), NAMES)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Features(np.ones((2, 2), np.float32)), "there are 2 database features for 3 images of the ground truth"),
        (
            named(np.ones((2, 2), np.float32), ["i0", "i1"]),
            "1 images of the ground truth have no database feature (i2)",
        ),
        (named(np.ones((4, 2), np.float32), ["i0", "i1", "i2", "x"]), "1 of 4 database features are of images"),
        (named(np.ones((3, 2), np.float32), ["i0", "a/i0.jpg", "i2"]), "two database features are of the image i0"),
    ],
)
def test_features_of_other_images_are_refused(part: Features, words: str) -> None:
    with pytest.raises(DataError) as caught:
        rows_by_name("database", part, ("i0", "i1", "i2"))
    assert words in str(caught.value)
