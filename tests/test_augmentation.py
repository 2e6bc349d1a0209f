"""From decoded views to normalised ones: the settings by kind of view, and what a view depends on."""

from typing import Any

import pytest
import torch
from torch import Tensor

from patchssl.augmentation import prepare_views, view_settings
from patchssl.config import PhotometricConfig
from patchssl.draws import uniforms
from patchssl.errors import ConfigError
from patchssl.photometric import DINO, IMAGENET_MEAN, IMAGENET_STD, PhotometricSettings
from patchssl.structs import BatchViews, Boxes, SampleKeys, ViewGroup
from patchssl.units import apply_
from patchssl.workspace import Workspace

CPU = torch.device("cpu")
NOTHING = {
    "jitter_probability": 0.0,
    "greyscale_probability": 0.0,
    "blur_probability": (0.0, 0.0, 0.0),
    "solarise_probability": (0.0, 0.0, 0.0),
}
MEAN, STD = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]


def config(**changes: object) -> PhotometricConfig:
    return PhotometricConfig.model_validate(changes)


def keys(*index: int, epoch: int = 0) -> SampleKeys:
    return SampleKeys(torch.full((len(index),), epoch), torch.tensor(index))


def group(num_images: int, num_views: int, side: int, seed: int = 0) -> ViewGroup:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num_images, num_views, 3, side, side), dtype=torch.uint8, generator=generator)
    corners = torch.rand(num_images, num_views, 4, dtype=torch.float64, generator=generator)
    return ViewGroup(pixels, Boxes(corners, torch.zeros(num_images, num_views, dtype=torch.bool)))


def alike(num_images: int, num_views: int, side: int) -> ViewGroup:
    """All views show the same picture, so that they differ by their augmentation only."""
    one = group(1, 1, side)
    pixels = one.pixels.expand(num_images, num_views, -1, -1, -1)
    return ViewGroup(pixels, Boxes(torch.zeros(num_images, num_views, 4), torch.zeros(num_images, num_views) > 0))


def unnormalised(prepared: ViewGroup) -> Tensor:
    return prepared.pixels * STD + MEAN


def prepare(groups: list[ViewGroup], of: SampleKeys, photometric: PhotometricConfig, seed: int = 0) -> list[ViewGroup]:
    return list(prepare_views(groups, of, view_settings(photometric, 8), seed=seed, device=CPU).student)


def test_memory_that_is_kept_from_step_to_step_changes_nothing() -> None:
    """Views lie where those of the step before did, also where these were more."""
    settings, workspace = view_settings(config(patch_probability=0.5), 8), Workspace()
    places = set[int]()
    for index in ((0, 1, 2), (3, 4), (0, 1, 2)):
        groups = [group(len(index), 3, 16), group(len(index), 2, 8)]
        kept = prepare_views(groups, keys(*index), settings, seed=0, device=CPU, workspace=workspace)
        for ours, expected in zip(
            kept.student, prepare(groups, keys(*index), config(patch_probability=0.5)), strict=True
        ):
            assert torch.equal(ours.pixels, expected.pixels)
            places.add(ours.pixels.data_ptr())
    assert len(places) == 2


def test_the_defaults_are_dinos() -> None:
    assert view_settings(config(), 16) == (DINO["first_global"], DINO["second_global"], DINO["local"])


def test_lists_of_three_go_to_the_kinds_and_the_rest_to_all() -> None:
    settings = view_settings(
        config(
            blur_probability=(0.1, 0.2, 0.3),
            solarise_probability=(0.4, 0.5, 0.6),
            brightness=0.7,
            contrast=0.6,
            saturation=0.5,
            hue=0.25,
            jitter_probability=0.9,
            greyscale_probability=0.15,
            blur_sigma=(0.5, 1.5),
            solarise_threshold=0.75,
            patch_probability=0.35,
        ),
        14,
    )
    for kind, (blur, solarise) in enumerate(((0.1, 0.4), (0.2, 0.5), (0.3, 0.6))):
        assert settings[kind] == PhotometricSettings(
            blur_probability=blur,
            solarise_probability=solarise,
            brightness=0.7,
            contrast=0.6,
            saturation=0.5,
            hue=0.25,
            jitter_probability=0.9,
            greyscale_probability=0.15,
            blur_sigma=(0.5, 1.5),
            solarise_threshold=0.75,
            patch_probability=0.35,
            cell_px=14,
        )


def test_a_cell_is_a_patch_unless_said_otherwise() -> None:
    assert {setting.cell_px for setting in view_settings(config(), 14)} == {14}
    assert {setting.cell_px for setting in view_settings(config(cell_size=28), 14)} == {28}


def test_without_augmentation_views_are_normalised_only() -> None:
    """By ImageNet's mean and standard deviation; boxes are handed on."""
    groups = [group(3, 2, 16), group(3, 4, 8)]
    prepared = prepare(groups, keys(0, 1, 2), config(**NOTHING))
    for before, after in zip(groups, prepared, strict=True):
        assert after.pixels.dtype == torch.float32
        assert torch.allclose(after.pixels, (before.pixels / 255 - MEAN) / STD, atol=1e-6)
        assert after.boxes is before.boxes
    white = ViewGroup(torch.full((1, 2, 3, 8, 8), 255, dtype=torch.uint8), groups[0].boxes)
    (prepared_white,) = prepare([white], keys(0), config(**NOTHING))
    assert prepared_white.pixels[0, 0, :, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.6400], abs=1e-4)


@pytest.mark.parametrize("kind", range(3))
def test_each_kind_of_view_gets_its_settings(kind: int) -> None:
    """Solarisation from 0 on inverts every pixel of exactly the views of that kind, of three global ones here."""
    probability = tuple(float(number == kind) for number in range(3))
    changes = {**NOTHING, "solarise_probability": probability, "solarise_threshold": 0.0}
    groups = [group(4, 3, 16), group(4, 5, 8)]
    prepared = prepare(groups, keys(0, 1, 2, 3), config(**changes))
    inverted = [[kind == 0, kind == 1, kind == 1], [kind == 2] * 5]
    for before, after, expected in zip(groups, prepared, inverted, strict=True):
        for view, is_inverted in enumerate(expected):
            plain = before.pixels[:, view] / 255
            assert torch.allclose(unnormalised(after)[:, view], 1 - plain if is_inverted else plain, atol=1e-5)


def test_without_local_views() -> None:
    (prepared,) = prepare([group(2, 2, 16)], keys(0, 1), config())
    assert prepared.pixels.shape == (2, 2, 3, 16, 16)


@pytest.mark.parametrize("patch_probability", [0.0, 0.5, 1.0])
def test_a_view_depends_on_its_key_and_number_only(patch_probability: float) -> None:
    photometric = config(patch_probability=patch_probability)
    groups = [group(6, 2, 16), group(6, 3, 8, seed=1)]
    index = (3, 1, 4, 15, 9, 2)
    batch = prepare(groups, keys(*index), photometric)
    chosen = [4, 0, 5]
    fewer = [ViewGroup(part.pixels[chosen], part.boxes[chosen]) for part in groups]
    some = prepare(fewer, keys(*(index[place] for place in chosen)), photometric)
    for ours, theirs in zip(some, batch, strict=True):
        assert torch.allclose(ours.pixels, theirs.pixels[chosen], atol=1e-6)


@pytest.mark.parametrize("patch_probability", [0.0, 1.0])
def test_seed_epoch_index_and_view_each_change_the_augmentation(patch_probability: float) -> None:
    photometric = config(patch_probability=patch_probability, jitter_probability=1.0, greyscale_probability=0.0)
    seen = [
        view
        for seed, epoch, index in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
        for prepared in prepare([alike(1, 3, 16), alike(1, 3, 16)], keys(index, epoch=epoch), photometric, seed)
        for view in prepared.pixels[0]
    ]
    assert len(seen) == 4 * 6
    apart = [float((one - other).abs().max()) for place, one in enumerate(seen) for other in seen[:place]]
    assert min(apart) > 1e-3


def test_the_global_generator_is_neither_used_nor_heeded() -> None:
    groups = [group(2, 2, 16)]
    before = torch.get_rng_state()
    first = prepare(groups, keys(0, 1), config(patch_probability=0.5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(prepare(groups, keys(0, 1), config(patch_probability=0.5))[0].pixels, first[0].pixels)


def test_streams_do_not_meet_those_of_the_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Geometry draws from streams below 2**16, one a view; here every view of a sample has one of its own above."""
    used: list[int] = []

    def recorded(seed: int, of: SampleKeys, stream: Tensor, num: int, *, device: str) -> Tensor:
        used.extend(stream.tolist())
        return uniforms(seed, of, stream, num, device=device)

    monkeypatch.setattr("patchssl.photometric.uniforms", recorded)
    prepare([group(1, 3, 16), group(1, 8, 8)], keys(0), config())
    assert sorted(used) == list(range(1 << 16, (1 << 16) + 11))


@pytest.mark.parametrize("patch_probability", [0.0, 1.0])
def test_bytes_and_fractions_agree_and_stay_as_they_were(patch_probability: float) -> None:
    groups = [group(3, 2, 16), group(3, 2, 8)]
    copies = [part.pixels.clone() for part in groups]
    fractions = [ViewGroup(part.pixels.float() / 255, part.boxes) for part in groups]
    float_copies = [part.pixels.clone() for part in fractions]
    photometric = config(patch_probability=patch_probability)
    from_bytes, from_fractions = (prepare(given, keys(0, 1, 2), photometric) for given in (groups, fractions))
    for ours, theirs in zip(from_bytes, from_fractions, strict=True):
        assert torch.allclose(ours.pixels, theirs.pixels, atol=1e-5)
    for part, copy in zip([*groups, *fractions], [*copies, *float_copies], strict=True):
        assert torch.equal(part.pixels, copy)


def test_values_stay_in_range() -> None:
    for prepared in prepare([group(8, 2, 16), group(8, 4, 8)], keys(*range(8)), config(patch_probability=0.5)):
        pixels = unnormalised(prepared)
        assert pixels.min() > -1e-5
        assert pixels.max() < 1 + 1e-5


def test_patch_mode_treats_each_cell_by_itself() -> None:
    """Under jitter of brightness a cell of a grey view stays uniform, and cells differ; image mode has no cells."""
    grey = ViewGroup(torch.full((4, 2, 3, 16, 16), 100, dtype=torch.uint8), group(4, 2, 16).boxes)
    changes = {**NOTHING, "jitter_probability": 1.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    for patch_probability, num_shades in ((1.0, 4), (0.0, 1)):
        (prepared,) = prepare([grey], keys(*range(4)), config(**changes, patch_probability=patch_probability))
        cells = unnormalised(prepared).unflatten(-1, (2, 8)).unflatten(-3, (2, 8))  # (B, V, 3, 2, 8, 2, 8)
        spread = cells.amax((-1, -3)) - cells.amin((-1, -3))
        assert spread.max() < 1e-5
        shades = cells.mean((-1, -3))[:, :, 0].flatten(-2)  # (B, V, 4)
        for view in shades.flatten(0, 1):
            assert len(torch.unique(view.mul(1e4).round())) == num_shades
        assert shades.min() >= 0.6 * 100 / 255 - 1e-5
        assert shades.max() <= 1.4 * 100 / 255 + 1e-5


def test_a_change_inside_a_cell_stays_there() -> None:
    """Blur included."""
    photometric = config(patch_probability=1.0, blur_probability=(1.0, 1.0, 1.0), blur_sigma=(1.9, 2.0))
    before = group(1, 2, 16)
    changed = before.pixels.clone()
    changed[..., :8, 8:] = 255 - changed[..., :8, 8:]
    one, other = (
        prepare([ViewGroup(pixels, before.boxes)], keys(5), photometric)[0].pixels
        for pixels in (before.pixels, changed)
    )
    differs = (one != other).unflatten(-1, (2, 8)).unflatten(-3, (2, 8)).any(-1).any(-2).any(2)  # (B, V, 2, 2)
    assert differs.tolist() == [[[[False, True], [False, False]]] * 2]


def test_cells_must_fill_every_view() -> None:
    with pytest.raises(ConfigError, match="cells of 8 px do not fill views of 12 px; take a divisor of 12"):
        prepare([group(1, 2, 16), group(1, 2, 12)], keys(0), config(patch_probability=0.5))


def both(student: float, teacher: tuple[float, float] | None, index: tuple[int, ...] = tuple(range(12))) -> BatchViews:
    pictures = [group(12, 3, 16), group(12, 2, 8)]
    chosen = list(index)
    some = [ViewGroup(part.pixels[chosen], part.boxes[chosen]) for part in pictures]
    settings = view_settings(config(patch_probability=student), 8)
    return prepare_views(some, keys(*index), settings, seed=0, device=CPU, teacher_patch_probability=teacher)


def test_the_teacher_sees_the_students_pixels_unless_modes_differ() -> None:
    for student, teacher in ((0.5, None), (0.5, (0.5, 0.5)), (0.0, (0.0, 0.0)), (1.0, (1.0, 1.0))):
        views = both(student, teacher)
        assert views.teacher is views.student[0]


@pytest.mark.parametrize("student", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("teacher", [0.0, 0.6, 1.0])
def test_each_side_is_in_the_mode_of_its_own_probability(student: float, teacher: float) -> None:
    """Every copy is, to the bit, the image or the patch version of its view, as the number of that view says."""
    images, patches = both(0.0, None).teacher.pixels, both(1.0, None).teacher.pixels
    views = both(student, (teacher, teacher))
    streams = (1 << 16) + torch.arange(3)
    numbers = torch.stack([uniforms(0, keys(*range(12)), int(stream), 1)[:, 0] for stream in streams], dim=1)  # (B, V)
    for side, probability in ((views.student[0], student), (views.teacher, teacher)):
        cellwise = (numbers < probability)[..., None, None, None]
        assert torch.equal(side.pixels, torch.where(cellwise, patches, images))
    if {student, teacher} == {0.3, 0.6}:
        agree = ((numbers < student) == (numbers < teacher)).float().mean()
        assert 0 < agree < 1
    assert views.teacher.boxes is views.student[0].boxes


def test_the_teachers_first_and_other_views_have_probabilities_of_their_own() -> None:
    images, patches = both(0.0, None).teacher.pixels, both(1.0, None).teacher.pixels
    for first, others in ((0.0, 1.0), (1.0, 0.0)):
        seen = both(0.5, (first, others)).teacher.pixels
        assert torch.equal(seen[:, 0], (patches if first else images)[:, 0])
        assert torch.equal(seen[:, 1:], (patches if others else images)[:, 1:])


def test_only_views_whose_modes_differ_are_augmented_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 0.5 and 0 those that the student sees in patch mode, and nothing of them drawn anew but their mode."""
    augmented: list[int] = []

    def counted(given: Tensor, *others: Any, **named: Any) -> Tensor:
        augmented.append(len(given))
        return apply_(given, *others, **named)

    monkeypatch.setattr("patchssl.photometric.apply_", counted)
    streams = (1 << 16) + torch.arange(3)
    numbers = torch.stack([uniforms(0, keys(*range(12)), int(stream), 1)[:, 0] for stream in streams], dim=1)
    both(0.5, None)
    alone = sum(augmented)
    augmented.clear()
    both(0.5, (0.0, 0.0))
    assert sum(augmented) - alone == int((numbers < 0.5).sum()) > 0


def test_the_teachers_copies_depend_on_their_key_and_number_only() -> None:
    index = (7, 2, 11)
    assert torch.equal(both(0.5, (0.0, 0.7), index).teacher.pixels, both(0.5, (0.0, 0.7)).teacher.pixels[list(index)])


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ((0.5,), r"teacher_patch_probability holds 1 numbers, \[0.5\]; give 2"),
        ((0.5, 1.5), r"teacher_patch_probability is \[0.5, 1.5\]; give probabilities from 0 to 1"),
    ],
)
def test_what_the_teacher_cannot_be_given(teacher: tuple[float, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        both(0.5, teacher)  # type: ignore[arg-type]


def test_cells_must_fill_the_teachers_views_and_there_is_a_key_for_each_image() -> None:
    settings = view_settings(config(), 8)
    with pytest.raises(ConfigError, match="cells of 8 px do not fill views of 12 px"):
        prepare_views([group(1, 2, 12)], keys(0), settings, seed=0, device=CPU, teacher_patch_probability=(0.0, 0.5))
    with pytest.raises(ValueError, match="2 keys for views of 3 images"):
        prepare_views([group(3, 2, 16)], keys(0, 1), settings, seed=0, device=CPU)
