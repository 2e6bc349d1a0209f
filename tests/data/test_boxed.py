"""A box is cut once, as Pillow cuts it, before anything else."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchssl.data.boxed import Box, BoxedSource
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ArraySource, FileSource, ImageSource

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 10, 12, 3), dtype=np.uint8)
WHOLE = ArraySource(PIXELS, ("a", "b", "c"), np.array([0, 1, 0]), ("x", "y"), "name", "location")


def test_by_hand_with_the_rounding_of_pillow() -> None:
    # Halves go to even: 2.5 → 2, 3.5 → 4.
    boxes: tuple[Box | None, ...] = ((2.5, 3.5, 6.4, 8.6), None, (0, 0, 12, 10))
    source = BoxedSource(WHOLE, boxes)
    np.testing.assert_array_equal(np.asarray(source.read(0)), PIXELS[0, 4:9, 2:6])
    np.testing.assert_array_equal(np.asarray(source.read(1)), PIXELS[1])
    np.testing.assert_array_equal(np.asarray(source.read(2)), PIXELS[2])


def test_what_lies_outside_is_black_as_in_pillow() -> None:
    source = BoxedSource(WHOLE, ((-2.0, 1.0, 3.0, 12.0), None, None))
    shown = np.asarray(source.read(0))
    assert shown.shape == (11, 5, 3)
    np.testing.assert_array_equal(shown[:9, 2:], PIXELS[0, 1:, :3])
    assert not shown[:, :2].any()
    assert not shown[9:].any()
    np.testing.assert_array_equal(shown, np.asarray(WHOLE.read(0).crop((-2, 1, 3, 12))))


def test_everything_else_is_the_source() -> None:
    source = BoxedSource(WHOLE, (None, None, (1, 1, 2, 2)))
    assert len(source) == 3
    assert (source.ids, source.classes, source.name, source.location) == (
        ("a", "b", "c"),
        ("x", "y"),
        *("name", "location"),
    )
    assert source.labels is WHOLE.labels
    assert pickle.loads(pickle.dumps(source)).read(2).size == (1, 1)


def test_fingerprint_and_state_follow_boxes_and_images(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(PIXELS[0]).save(tmp_path / f"{name}.png")
    files = FileSource(tmp_path, ("a.png", "b.png"), None, (), "name", "location", apply_exif=False)
    boxes: list[tuple[Box | None, ...]] = [
        (None, None),
        ((1, 1, 5, 5), None),
        (None, (1, 1, 5, 5)),
        ((1, 1, 5, 5.5), None),
    ]
    sources = [BoxedSource(files, chosen) for chosen in boxes]
    every: list[ImageSource] = [*sources, files]
    assert len({source.fingerprint() for source in every}) == 5
    assert len({source.state() for source in every}) == 5
    assert BoxedSource(files, ((1.0, 1.0, 5.0, 5.0), None)).fingerprint() == sources[1].fingerprint()
    state, fingerprint = sources[1].state(), sources[1].fingerprint()
    Image.fromarray(PIXELS[1]).resize((20, 20)).save(tmp_path / "a.png")
    assert sources[1].state() != state
    assert sources[1].fingerprint() != fingerprint


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((12.0, 0.0, 20.0, 5.0), "shows nothing of the 12 x 10 px image"),
        ((3.0, 3.0, 3.4, 9.0), "shows nothing"),
        ((5.0, 5.0, 2.0, 9.0), "shows nothing"),
        ((0.0, 0.0, 1e6, 1e6), "has more than 100,000,000 pixels"),
    ],
)
def test_a_box_that_cannot_be_cut_makes_an_image_unreadable(box: Box, words: str) -> None:
    with pytest.raises(UnreadableImage, match=words) as caught:
        BoxedSource(WHOLE, (box, None, None)).read(0)
    assert caught.value.path == "a"


def test_each_image_has_a_box() -> None:
    with pytest.raises(ValueError, match="2 boxes for 3 images"):
        BoxedSource(WHOLE, (None, None))
