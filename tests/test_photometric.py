"""Photometric augmentation: the law of the parameters, cells, and what a view may depend on."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from patchssl.cells import to_cells
from patchssl.colour import plan_jitter
from patchssl.errors import ConfigError
from patchssl.photometric import DINO, PhotometricSettings, augment, normalise
from patchssl.structs import SampleKeys

NOTHING = PhotometricSettings(blur_probability=0, solarise_probability=0, jitter_probability=0, greyscale_probability=0)
EVERYTHING = replace(
    NOTHING, blur_probability=0.5, solarise_probability=0.5, jitter_probability=0.8, greyscale_probability=0.2
)


def images(num: int, side: int = 16, seed: int = 0) -> Tensor:
    """Noise in the first half; in the second few levels, so that channels tie and grey, black and white occur."""
    pixels = torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(seed))
    pixels[num // 2 :] = (pixels[num // 2 :] * 3).round() / 3
    return pixels


def keys_of(num: int, epoch: int = 0) -> SampleKeys:
    return SampleKeys(torch.full((num,), epoch), torch.arange(num))


@pytest.mark.parametrize("patch_probability", [0.0, 0.5, 1.0])
def test_a_view_depends_on_nothing_but_itself(patch_probability: float) -> None:
    """Alone, in another order, in another batch: the same bits."""
    settings = replace(EVERYTHING, patch_probability=patch_probability, cell_px=8)
    pixels, keys, streams = images(20, 32), keys_of(20), torch.arange(20) % 3 + 5
    together = augment(pixels, settings, seed=3, keys=keys, stream=streams)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    shuffled = augment(pixels[order], settings, seed=3, keys=keys[order], stream=streams[order])
    assert torch.equal(shuffled, together[order])
    for row in range(20):
        stream = int(streams[row])
        alone = augment(pixels[row : row + 1], settings, seed=3, keys=keys[row : row + 1], stream=stream)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize(("side", "cell_px", "num"), [(96, 16, 40), (98, 14, 30), (224, 32, 7)])
def test_nor_does_it_at_the_sides_of_training(side: int, cell_px: int, num: int) -> None:
    """More views than are taken at a time, blurred by blocks."""
    settings = replace(EVERYTHING, patch_probability=0.5, cell_px=cell_px)
    pixels, keys = images(num, side), keys_of(num)
    together = augment(pixels, settings, seed=3, keys=keys, stream=4)
    chosen = torch.tensor([0, num - 1, num // 2])
    some = augment(pixels[chosen], settings, seed=3, keys=keys[chosen], stream=4)
    assert torch.equal(some, together[chosen])
    for row in range(3):
        alone = augment(pixels[row : row + 1], settings, seed=3, keys=keys[row : row + 1], stream=4)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("patch_probability", [0.0, 1.0])
def test_seed_epoch_sample_and_stream_each_change_the_augmentation(patch_probability: float) -> None:
    settings = replace(EVERYTHING, patch_probability=patch_probability, cell_px=8)
    pixels = images(1, 16).expand(40, -1, -1, -1)

    def run(seed: int = 0, epoch: int = 0, stream: int = 0) -> Tensor:
        return augment(pixels, settings, seed=seed, keys=keys_of(40, epoch), stream=stream)

    base = run()
    for other in (run(seed=1), run(epoch=1), run(stream=1), base.roll(1, 0)):
        assert (base != other).flatten(1).any(1).float().mean() > 0.8
    assert torch.equal(base, run())


def test_changing_a_cell_leaves_all_others_as_they_were() -> None:
    settings = replace(EVERYTHING, blur_probability=1.0, patch_probability=1.0, cell_px=8)
    pixels = images(8, 32)
    changed = pixels.clone()
    changed[:, :, 8:16, 16:24] = 1 - changed[:, :, 8:16, 16:24] * 0.5
    keys = keys_of(8)
    before, after = (augment(some, settings, seed=0, keys=keys, stream=0) for some in (pixels, changed))
    differs = (to_cells(before, 8) != to_cells(after, 8)).flatten(1).any(1).reshape(8, 16)
    assert differs[:, 6].all()
    assert differs.sum() == 8


def test_no_views() -> None:
    settings = replace(EVERYTHING, patch_probability=0.5, cell_px=8)
    assert augment(images(0), settings, seed=0, keys=keys_of(0), stream=0).shape == (0, 3, 16, 16)


def test_nothing_to_do_changes_nothing() -> None:
    pixels = images(6)
    for patch_probability in (0.0, 1.0):
        settings = replace(NOTHING, patch_probability=patch_probability, cell_px=8)
        assert torch.equal(augment(pixels, settings, seed=0, keys=keys_of(6), stream=0), pixels)


def brightness_of(settings: PhotometricSettings, num: int, cell_px: int) -> Tensor:
    """Factors that even views of 16 px were multiplied by, (num, cells)."""
    only = replace(settings, jitter_probability=1.0, contrast=0.0, saturation=0.0, hue=0.0)
    pixels = torch.full((num, 3, 16, 16), 0.5)
    bright = augment(pixels, only, seed=5, keys=keys_of(num), stream=0)
    cells = to_cells(bright, cell_px).flatten(1)
    torch.testing.assert_close(cells.amax(1), cells.amin(1), rtol=0, atol=1e-5)
    return cells.mean(1).reshape(num, -1) * 2


def test_modes_follow_their_probability() -> None:
    """Image mode brightens a view evenly; in patch mode no two of the four cells are alike."""
    for probability, least, greatest in ((0.0, 0, 0), (0.3, 0.25, 0.35), (1.0, 1, 1)):
        factors = brightness_of(replace(NOTHING, patch_probability=probability, cell_px=8), 1000, 8)
        uneven = ((factors - factors[:, :1]).abs() > 1e-4).any(1).float().mean()
        assert least <= uneven <= greatest


def test_cells_get_independent_uniform_factors() -> None:
    factors = brightness_of(replace(NOTHING, patch_probability=1.0, cell_px=4), 500, 4)  # (500, 16)
    levels = torch.linspace(0, 1, 11)
    torch.testing.assert_close(torch.quantile(factors.flatten(), levels), 0.6 + 0.8 * levels, rtol=0, atol=0.02)
    correlation = torch.corrcoef(factors.T) - torch.eye(16)
    assert correlation.abs().max() < 4.5 / 500**0.5


def test_modes_draw_from_different_numbers() -> None:
    image = brightness_of(NOTHING, 1000, 16)
    cells = brightness_of(replace(NOTHING, patch_probability=1.0, cell_px=8), 1000, 8)
    correlation = torch.corrcoef(torch.cat((image, cells), dim=1).T)[0, 1:]
    assert correlation.abs().max() < 4.5 / 1000**0.5


@pytest.mark.parametrize("patch_probability", [0.0, 1.0])
@pytest.mark.parametrize(
    ("change", "happened"),
    [
        ({"greyscale_probability": 0.3}, lambda cell: (cell[:, 0] - cell[:, 1]).abs().amax((1, 2)) < 1e-6),
        ({"solarise_probability": 0.3}, lambda cell: cell.amax((1, 2, 3)) <= 128 / 255),
        ({"blur_probability": 0.3, "blur_sigma": (0.5, 2.0)}, None),
        ({"jitter_probability": 0.3, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.5}, None),
    ],
    ids=["greyscale", "solarise", "blur", "jitter"],
)
def test_operations_follow_their_probability(
    patch_probability: float, change: dict[str, Any], happened: Callable[[Tensor], Tensor] | None
) -> None:
    settings = replace(NOTHING, patch_probability=patch_probability, cell_px=8, **change)
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))[:1].repeat(600, 1, 2, 2)
    cells = to_cells(augment(pixels, settings, seed=0, keys=keys_of(600), stream=0), 8)
    changed = (cells - pixels[:1, :, :8, :8]).abs().amax((1, 2, 3)) > 1e-5
    if happened is not None:
        assert torch.equal(happened(cells), changed)
    fraction, num = float(changed.float().mean()), 600 if patch_probability == 0 else 2400
    assert abs(fraction - 0.3) < 4 * (0.21 / num) ** 0.5


def test_all_orders_of_jitter_are_equally_probable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square of 24 orders against its 0.999 quantile, 49.7 with 23 degrees of freedom."""
    seen: list[tuple[int, ...]] = []

    def remember(amounts: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen.extend(tuple(row) for row in order.tolist())
        return plan_jitter(amounts, order)

    monkeypatch.setattr("patchssl.photometric.plan_jitter", remember)
    augment(images(4800, 1), replace(NOTHING, jitter_probability=1.0), seed=1, keys=keys_of(4800), stream=0)
    counts = Counter(seen)
    assert set(counts) == set(permutations(range(4)))
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 49.7


def test_amounts_keep_to_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def remember(amounts: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(amounts)
        return plan_jitter(amounts, order)

    monkeypatch.setattr("patchssl.photometric.plan_jitter", remember)
    settings = replace(NOTHING, jitter_probability=1.0, brightness=1.5)
    augment(images(4000, 1), settings, seed=1, keys=keys_of(4000), stream=0)
    low, high = torch.tensor([0, 0.6, 0.8, -0.1]), torch.tensor([2.5, 1.4, 1.2, 0.1])
    levels = torch.linspace(0, 1, 11)
    scaled = torch.quantile((seen[0] - low) / (high - low), levels, dim=0)  # (11, 4)
    torch.testing.assert_close(scaled, levels[:, None].expand(11, 4), rtol=0, atol=0.03)
    assert torch.corrcoef(seen[0].T).sub(torch.eye(4)).abs().max() < 4.5 / 4000**0.5


def test_dinos_settings() -> None:
    kinds = [(DINO[kind].blur_probability, DINO[kind].solarise_probability) for kind in DINO]
    assert list(DINO) == ["first_global", "second_global", "local"]
    assert kinds == [(1.0, 0.0), (0.1, 0.2), (0.5, 0.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blur_probability": 1.2}, "blur_probability is 1.2"),
        ({"patch_probability": -0.1}, "patch_probability is -0.1"),
        ({"brightness": -1.0}, "brightness is -1.0"),
        ({"hue": 0.6}, "hue is 0.6; give a number from 0 to 0.5"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma is"),
        ({"blur_sigma": (2.0, 1.0)}, "give 0 < least <= greatest"),
        ({"cell_px": 0}, "cell_px is 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(NOTHING, **change)


def test_cells_that_do_not_fill_the_view_and_missing_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match="cells of 12 px"):
        augment(images(2), replace(NOTHING, patch_probability=0.5, cell_px=12), seed=0, keys=keys_of(2), stream=0)
    with pytest.raises(ValueError, match="3 keys for 2 views"):
        augment(images(2), NOTHING, seed=0, keys=keys_of(3), stream=0)


def test_normalise() -> None:
    pixels = torch.tensor([0.485, 0.456, 0.406])[:, None, None].repeat(2, 2, 1, 4, 4)
    pixels[..., 0] = 1
    scaled = normalise(pixels)
    assert scaled.shape == pixels.shape
    torch.testing.assert_close(scaled[..., 1:], torch.zeros(2, 2, 3, 4, 3))
    assert scaled[0, 0, :, 0, 0].tolist() == pytest.approx([2.24891, 2.42857, 2.64], abs=1e-4)
    assert torch.equal(normalise(pixels, (0, 0, 0), (1, 1, 1)), pixels)
