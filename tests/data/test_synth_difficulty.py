"""How the difficulty of the built-in images changes them."""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from patchssl.cli.data import data
from patchssl.data.synth import cache, edits, write_dataset
from patchssl.data.synth.canvas import Pixels
from patchssl.data.synth.classes import class_images, draw_class_image
from patchssl.data.synth.copies import copydays_drawings, draw_original
from patchssl.data.synth.difficulty import light_strength, obscure
from patchssl.data.synth.instances import draw_view, retrieval_images
from patchssl.data.synth.randomness import Part, generator
from patchssl.errors import DataError


def correlation(first: Pixels, second: Pixels) -> float:
    return float(np.corrcoef(first.ravel().astype(float), second.ravel().astype(float))[0, 1])


def stripes() -> Pixels:
    columns = np.where(np.arange(64) // 8 % 2, 255, 0).astype(np.uint8)
    return np.broadcast_to(columns[None, :, None], (48, 64, 3)).copy()


def test_the_usual_images_are_those_from_before_there_were_difficulties() -> None:
    # Of all pixels, taken before the difficulty came; the JPEG files themselves depend on the encoder.
    digest = hashlib.sha256()
    for image in class_images(24):
        digest.update(draw_class_image(image, 32, 7, 1.0).tobytes())
    for drawing in copydays_drawings(24, 64, 7):
        if drawing.relative_path.startswith(("original", "crops", "jpegqual")):
            digest.update(drawing.pixels.tobytes())
    for retrieval in retrieval_images(24, 64, 7):
        digest.update(retrieval.drawing.pixels.tobytes())
    assert digest.hexdigest() == "8412cc1b73edd169b540cf0481310eae1bfe3a09eb222e309d5e5a90ee8e9623"


@pytest.mark.parametrize("difficulty", [0.5, 1.0])
def test_nothing_is_laid_over_an_image_up_to_one(difficulty: float) -> None:
    assert np.array_equal(obscure(stripes(), difficulty, 0, 1), stripes())


def test_an_obscured_image_by_hand_where_nothing_was_drawn() -> None:
    # At 1.1 no object is drawn (round(0.2) = 0), contrast is lost and noise added.
    pixels = np.full((8, 8, 3), 255, dtype=np.uint8)
    covered = obscure(pixels, 1.1, 0, 3) / 255
    noise = 2 * generator(0, Part.OBSCURE, 3).random((8, 8, 3)) - 1
    assert covered == pytest.approx(0.5 + 0.5 / 1.1 + 0.05 * 0.1 * noise, abs=0.5 / 255)


def test_the_picture_shows_through_less_and_less() -> None:
    shown = [
        np.mean([correlation(stripes(), obscure(stripes(), difficulty, 0, key)) for key in range(8)])
        for difficulty in (1.0, 1.5, 2.0, 4.0, 8.0, 16.0)
    ]
    assert shown[0] == pytest.approx(1.0)
    assert all(less < more - 0.01 for more, less in pairwise(shown))
    assert shown[-1] < 0.1


def test_what_covers_an_image_follows_from_seed_and_key() -> None:
    first = obscure(stripes(), 3.0, 0, 1, 2)
    assert np.array_equal(first, obscure(stripes(), 3.0, 0, 1, 2))
    for other in (obscure(stripes(), 3.0, 0, 1, 3), obscure(stripes(), 3.0, 1, 1, 2)):
        assert (first != other).mean() > 0.9


def test_every_part_changes_with_the_difficulty() -> None:
    image = next(iter(class_images(1)))
    drawn = {
        difficulty: (
            draw_class_image(image, 32, 0, difficulty),
            draw_original(0, 64, 0, difficulty),
            next(iter(retrieval_images(24, 64, 0, difficulty))).drawing.pixels,
        )
        for difficulty in (0.5, 1.0, 2.0, 3.0)
    }
    for part in range(3):
        different = {difficulty: pixels[part].tobytes() for difficulty, pixels in drawn.items()}
        assert len(set(different.values())) == len(different)


def test_the_copies_of_a_hard_original_are_covered_by_different_things() -> None:
    drawings = {drawing.relative_path: drawing.pixels for drawing in copydays_drawings(24, 64, 0, 3.0)}
    copies = [drawings[f"jpegqual/{quality}/200000.jpg"] for quality in (50, 75)]
    original = drawings["original/200000.jpg"]
    assert (copies[0] != copies[1]).mean() > 0.9
    assert all((copy != original).mean() > 0.9 for copy in copies)


def test_the_number_of_strong_edits_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[str] = []

    def recorder(name: str) -> edits.Edit:
        def edit(rng: np.random.Generator, pixels: Pixels) -> Pixels:
            applied.append(name)
            return pixels

        return edit

    for name in list(edits.STRONG_EDITS):
        monkeypatch.setitem(edits.STRONG_EDITS, name, recorder(name))
    per_copy = {}
    for difficulty in (0.2, 1.0, 1.5, 4.0):
        applied.clear()
        num_copies = sum(d.relative_path.startswith("strong") for d in copydays_drawings(24, 64, 0, difficulty))
        per_copy[difficulty] = len(applied) / num_copies
    assert per_copy == {0.2: 1, 1.0: 2, 1.5: 3, 4.0: 6}


def test_views_turn_farther_and_the_light_varies_more_up_to_a_limit() -> None:
    def spread(difficulty: float) -> float:
        angles = [draw_view(generator(0, Part.VIEW, i), "easy", 0.0, difficulty).pose.angle for i in range(200)]
        return max(map(abs, angles))

    assert spread(2.0) == pytest.approx(2 * spread(1.0))
    assert spread(100.0) <= np.pi
    assert [light_strength(d) for d in (0.5, 1.0, 2.0, 9.0)] == [0.5, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("difficulty", [0.0, -1.0, 100.5, float("nan"), float("inf")])
def test_difficulties_out_of_range_are_refused(tmp_path: Path, difficulty: float) -> None:
    with pytest.raises(DataError, match=r"above 0 and up to 100"):
        write_dataset(tmp_path / "out", num_images=24, image_size_px=32, difficulty=difficulty)
    assert list(tmp_path.iterdir()) == []


def test_the_largest_difficulty_can_be_drawn() -> None:
    assert draw_class_image(next(iter(class_images(1))), 32, 0, 100.0).shape == (32, 32, 3)
    assert draw_original(0, 64, 0, 100.0).shape == (48, 64, 3)
    assert next(iter(retrieval_images(24, 64, 0, 100.0))).drawing.pixels.shape == (48, 64, 3)


def test_the_summary_tells_it(tmp_path: Path) -> None:
    assert write_dataset(tmp_path / "out", num_images=24, image_size_px=32, difficulty=2).difficulty == 2


def test_each_difficulty_has_a_place_of_its_own_in_the_cache(tmp_path: Path) -> None:
    folders = [
        cache.cached_dataset(tmp_path, num_images=24, image_size_px=32, seed=0, difficulty=difficulty)
        for difficulty in (1, 1.0, 1.0000001, 3.0)
    ]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3
    name = next(path.relative_to(folders[0]) for path in sorted(folders[0].rglob("*.png")))
    assert (folders[0] / name).read_bytes() != (folders[3] / name).read_bytes()


def test_the_command_line_knows_it(tmp_path: Path) -> None:
    run = CliRunner()
    small = ["--num-images", "24", "--image-size", "32"]
    done = run.invoke(data, ["synth", str(tmp_path / "hard"), *small, "--difficulty", "2.5"])
    assert done.exit_code == 0, done.output
    assert "difficulty 2.5" in done.stderr
    run.invoke(data, ["synth", str(tmp_path / "usual"), *small, "--quiet"])
    names = [path.relative_to(tmp_path / "hard") for path in (tmp_path / "hard").rglob("*.png")]
    assert all((tmp_path / "hard" / name).read_bytes() != (tmp_path / "usual" / name).read_bytes() for name in names)
