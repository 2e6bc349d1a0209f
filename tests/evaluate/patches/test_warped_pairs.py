from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ArraySource
from patchssl.data.loader import iterate
from patchssl.data.sources import open_unlabelled
from patchssl.evaluate.patches.warped_pairs import LEAST_PX, WarpedPairs, render
from patchssl.warps import KINDS, TILT, apply, mirror, tilt

VIEW = 24


def source(num: int = 5, height: int = 40, width: int = 56) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (num, height, width, 3), dtype=np.uint8)
    return ArraySource(pixels, tuple(f"{index}.png" for index in range(num)), None, (), "drawn", "drawn")


def pairs(
    images: ArraySource | None = None,
    kinds: Sequence[str] = tuple(KINDS),
    places: Sequence[int] | None = None,
    **changed: Any,
) -> WarpedPairs:
    of = source() if images is None else images
    chosen = np.arange(len(of)) if places is None else np.array(places)
    settings: dict[str, Any] = {"side": VIEW, "num_pairs": 2, "pairs_per_step": 3, "seed": 5, **changed}
    return WarpedPairs(of, chosen, kinds, **settings)


def by_unit(made: WarpedPairs) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """(image, pair) → pixels and matrices of its views."""
    found = {}
    for views, keys, bad in (made[step] for step in range(len(made))):
        assert not bad
        for row, key in enumerate(zip(keys.index.tolist(), keys.epoch.tolist(), strict=True)):
            found[key] = views.pixels[row], views.matrices[row]
    return found


def gradient(height: int, width: int) -> tuple[Image.Image, float]:
    """Red rises across and green down, by so much per pixel, from 0 at the very corner."""
    slope = 250 / max(height, width)
    rows, columns = np.indices((height, width)) + 0.5
    pixels = np.stack([columns * slope, rows * slope, np.zeros_like(rows)], axis=-1)
    return Image.fromarray(np.round(pixels).astype(np.uint8)), slope


def assert_shows(view: NDArray[np.uint8], matrix: NDArray[np.float64], slope: float) -> None:
    """Every pixel but those of the rim has the colour of the place that it is said to show."""
    rows, columns = np.indices(view.shape[:2]) + 0.5
    expected = apply(matrix, np.stack([columns, rows], axis=-1).reshape(-1, 2)).reshape(*view.shape[:2], 2) * slope
    inner = slice(2, -2)
    # Less than two levels, from rounding three times, and a tenth of a pixel.
    np.testing.assert_allclose(view[inner, inner, :2], expected[inner, inner], atol=2 + 0.1 * slope)
    # On average less than one: nothing is shifted by as much as a fifth of a pixel of the view.
    shift = (view[inner, inner, :2] - expected[inner, inner]).mean((0, 1))
    assert np.abs(shift).max() < 0.75, shift


def test_a_view_of_the_whole_image_is_the_image() -> None:
    image = source().read(0).crop((0, 0, 40, 40))
    np.testing.assert_array_equal(render(image, np.eye(3), 40), np.asarray(image))
    np.testing.assert_array_equal(render(image, mirror(40), 40), np.asarray(image)[:, ::-1])


def test_a_small_tilt_is_hardly_seen() -> None:
    image, _ = gradient(40, 40)
    tilted = render(image, tilt(np.full(8, 1e-7), 40), 40).astype(int)
    assert np.abs(tilted - np.asarray(image)).max() <= 1


@pytest.mark.parametrize("size", [(40, 60), (300, 200), (20, 20)])
def test_views_show_what_their_matrices_say(size: tuple[int, int]) -> None:
    image, slope = gradient(*size)
    images = ArraySource(np.asarray(image)[None], ("a",), None, (), "a", "a")
    geometric = [name for name, kind in KINDS.items() if not kind.recolour]
    made = pairs(images, geometric, num_pairs=6)
    for pixels, matrices in by_unit(made).values():
        for view, matrix in zip(pixels.permute(0, 2, 3, 1).numpy(), matrices.numpy(), strict=True):
            assert_shows(view, matrix, slope)


def test_nothing_from_beyond_the_image_comes_in() -> None:
    white = ArraySource(np.full((1, 30, 30, 3), 255, dtype=np.uint8), ("a",), None, (), "a", "a")
    for pixels, _ in by_unit(pairs(white, ["crop", "scale", "flip", "perspective"], num_pairs=30)).values():
        assert (pixels == 255).all()
    corners = np.full(8, TILT)
    corners[:4] = 0
    assert (render(white.read(0), np.diag([30 / VIEW, 30 / VIEW, 1]) @ tilt(corners, VIEW), VIEW) == 255).all()


def test_shrinking_averages_instead_of_picking() -> None:
    board = np.indices((400, 400)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(board[..., None], 3, axis=-1).astype(np.uint8))
    whole = np.diag([400 / VIEW, 400 / VIEW, 1.0])
    for matrix in (whole, whole @ tilt(np.array([0, 0, 0, 0, 0.1, 0.1, 0.1, 0.1]), VIEW)):
        view = render(image, matrix, VIEW).astype(float)
        assert np.abs(view[2:-2, 2:-2] - 127.5).max() < 6


def test_a_pair_follows_from_seed_image_and_number_alone() -> None:
    one = by_unit(pairs())
    assert sorted(one) == [(image, pair) for image in range(5) for pair in range(2)]
    for other in (pairs(pairs_per_step=10), pairs(num_pairs=3, pairs_per_step=1), pairs(places=[1, 4])):
        for key, (pixels, matrices) in by_unit(other).items():
            if key in one:
                assert torch.equal(pixels, one[key][0])
                assert torch.equal(matrices, one[key][1])
    assert not torch.equal(one[0, 0][1], one[0, 1][1])
    assert not torch.equal(one[0, 0][1], one[1, 0][1])
    assert not torch.equal(one[0, 0][1], by_unit(pairs(seed=6))[0, 0][1])


def test_other_kinds_change_nothing() -> None:
    whole, some = by_unit(pairs()), by_unit(pairs(kinds=["flip", "colour"]))
    for key, (pixels, _) in some.items():
        assert torch.equal(pixels, whole[key][0][[0, 3, 5]])


def test_flip_and_colour_are_the_crop_mirrored_and_recoloured() -> None:
    differences = []
    for pixels, _ in by_unit(pairs()).values():
        _, crop, _, flip, _, colour, _ = pixels
        assert torch.equal(flip, crop.flip(-1))
        differences.append((colour.float() - crop.float()).abs().mean())
    assert min(differences) > 1
    # Recoloured alike in both places, so that only the geometry differs.
    white = ArraySource(np.full((3, 30, 30, 3), (200, 90, 30), dtype=np.uint8), tuple("abc"), None, (), "a", "a")
    for pixels, _ in by_unit(pairs(white)).values():
        assert torch.equal(pixels[5], pixels[6])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(workers: int) -> None:
    made = list(iterate(pairs(), first_step=0, workers=workers, pin_memory=False))
    for step, (views, keys, _) in enumerate(made):
        expected, wanted, _ = pairs()[step]
        assert torch.equal(views.pixels, expected.pixels)
        assert torch.equal(views.matrices, expected.matrices)
        assert torch.equal(keys.index, wanted.index)


def test_steps_by_hand() -> None:
    made = pairs(source(3), num_pairs=2, pairs_per_step=4)
    assert [made.units_of(step) for step in range(len(made))] == [[(0, 0), (0, 1), (1, 0), (1, 1)], [(2, 0), (2, 1)]]
    views, keys, bad = made[0]
    assert views.pixels.shape == (4, 7, 3, VIEW, VIEW)
    assert views.pixels.dtype == torch.uint8
    assert views.matrices.shape == (4, 7, 3, 3)
    assert (keys.index.tolist(), keys.epoch.tolist(), bad) == ([0, 0, 1, 1], [0, 1, 0, 1], [])


def test_what_cannot_be_read_or_is_too_small_is_left_out(tmp_path: Path) -> None:
    for name, side in (("a.png", LEAST_PX), ("b.png", LEAST_PX - 1), ("d.png", 40)):
        Image.new("RGB", (50, side)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    files = open_unlabelled(tmp_path)
    made = WarpedPairs(files, np.arange(4), ["crop"], side=VIEW, num_pairs=2, pairs_per_step=8, seed=0)
    views, keys, bad = made[0]
    assert keys.index.tolist() == [0, 0, 3, 3]
    assert len(views.pixels) == 4
    assert [type(error) for error in bad] == [UnreadableImage] * 2
    assert "b.png: has 50 x 15 px; for views of parts of it at least 16 are needed" in str(bad[0])
    assert "c.png: is not an image" in str(bad[1])
    nothing = WarpedPairs(files, np.array([1, 2]), ["crop", "all"], side=VIEW, num_pairs=1, pairs_per_step=2, seed=0)
    views, keys, bad = nothing[0]
    assert views.pixels.shape == (0, 3, 3, VIEW, VIEW)
    assert (len(keys), len(bad)) == (0, 2)


def test_noise_is_each_views_own_and_as_strong_as_asked_for() -> None:
    grey = ArraySource(np.full((3, 40, 56, 3), 128, np.uint8), ("a", "b", "c"), None, (), "grey", "grey")
    noisy = by_unit(pairs(grey, ("crop", "flip"), noise=0.1))
    views = torch.stack([pixels for pixels, _ in noisy.values()]).flatten(0, 1).float() - 128  # (6 * 3, 3, h, w)
    assert views.std().item() == pytest.approx(25.5, rel=0.02)
    alike = torch.corrcoef(views.flatten(1)).fill_diagonal_(0)
    assert alike.abs().max() < 0.15
    for key, (pixels, _) in by_unit(pairs(grey, ("flip",), noise=0.1, pairs_per_step=1)).items():
        torch.testing.assert_close(pixels, noisy[key][0][[0, 2]], rtol=0, atol=0)


def test_without_noise_views_are_as_they_were() -> None:
    for (pixels, _), (silent, _) in zip(by_unit(pairs()).values(), by_unit(pairs(noise=0.0)).values(), strict=True):
        assert torch.equal(pixels, silent)
