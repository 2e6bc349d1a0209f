"""Views as decoded → photometric augmentation by their kind → normalised, on the training device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchssl.cells import check_cells
from patchssl.config import PhotometricConfig
from patchssl.errors import ConfigError
from patchssl.photometric import PhotometricSettings, ViewNumbers, fill, normalise_
from patchssl.stage_clock import UNTIMED, Stages
from patchssl.structs import BatchViews, SampleKeys, ViewGroup
from patchssl.workspace import Workspace

# Streams of view v's geometry are v; those of its photometric parameters begin here.
_FIRST_STREAM = 1 << 16


def view_settings(config: PhotometricConfig, patch_px: int) -> tuple[PhotometricSettings, ...]:
    """The settings of the first global, the other global and the local views."""
    apart = {"blur_probability", "solarise_probability", "patch_probability", "teacher_patch_probability", "cell_size"}
    shared = config.model_dump(exclude=apart)
    return tuple(
        PhotometricSettings(
            **shared,
            blur_probability=config.blur_probability[kind],
            solarise_probability=config.solarise_probability[kind],
            patch_probability=config.patch_probability[kind],
            cell_px=config.cell_size or patch_px,
        )
        for kind in range(3)
    )


def prepare_views(
    groups: Sequence[ViewGroup],
    keys: SampleKeys,
    settings: Sequence[PhotometricSettings],
    *,
    seed: int,
    device: torch.device,
    teacher_patch_probability: Sequence[float] | None = None,
    clock: Stages = UNTIMED,
    workspace: Workspace | None = None,
) -> BatchViews:
    """Move the views of a batch to the device, augment and normalise them.

    The teacher's copy of a global view follows from the same numbers as the student's: the same one decides its mode,
    and each mode has the same parameters on both sides. So copies differ only where one is in patch mode and the other
    is not, and only those views are augmented twice.

    Args:
        groups: the global views and, unless there are none, the local ones; pixels uint8 or float in [0, 1].
        keys: the B samples.
        settings: as from view_settings.
        seed: of the run.
        device: where to compute.
        teacher_patch_probability: of the teacher's copy of the first global view and of the others being in patch mode;
            None: the teacher sees the student's pixels.
        clock: told when pixels are moved.
        workspace: holds the student's views, until they are asked for again; None: they are held by the caller alone.

    Raises:
        ConfigError: a probability is none, there are not two of them, or patch mode is possible and cells would not
            fill the view.
        ValueError: there are not as many keys as images.
    """
    _check(groups, keys, settings, teacher_patch_probability)
    workspace = workspace or Workspace()
    student, first_view, teacher = [], 0, None
    for number, group in enumerate(groups):
        with clock.stage("moving"):
            pixels = group.pixels.to(device, non_blocking=True).flatten(0, 1)  # (B * V, 3, side, side)
        dtype = torch.promote_types(pixels.dtype, torch.float32)
        done = workspace.take(f"views {number}", *pixels.shape, like=pixels, dtype=dtype)
        parts = _parts(group, keys, settings[:2] if number == 0 else settings[2:], seed, first_view)
        for part in parts:
            patch_mode = part.numbers.in_patch_mode(part.settings.patch_probability)
            fill(done, pixels, part.rows, part.numbers, patch_mode, part.settings, finish=normalise_)
        student.append(ViewGroup(done.view(group.pixels.shape), group.boxes))
        first_view += group.num_views
        if number == 0 and teacher_patch_probability is not None:
            theirs = _teachers_copies(done, pixels, parts, teacher_patch_probability)
            teacher = None if theirs is None else ViewGroup(theirs.view(group.pixels.shape), group.boxes)
    return BatchViews(tuple(student), teacher or student[0])


@dataclass(frozen=True, slots=True)
class _Part:
    """The views of a group that have the same settings.

    Attributes:
        settings: theirs.
        rows: (M,) int64, where they are in (B * V).
        numbers: theirs.
    """

    settings: PhotometricSettings
    rows: Tensor
    numbers: ViewNumbers


def _parts(
    group: ViewGroup, keys: SampleKeys, settings: Sequence[PhotometricSettings], seed: int, first_view: int
) -> list[_Part]:
    """Give the first views settings of their own, one each, and all others the last."""
    parts, num_images = [], len(keys)
    views = torch.arange(group.num_views)
    for ours, setting in zip(views.tensor_split(tuple(range(1, len(settings)))), settings, strict=True):
        rows = (torch.arange(num_images)[:, None] * group.num_views + ours).flatten()
        row_keys = SampleKeys(keys.epoch.repeat_interleave(len(ours)), keys.index.repeat_interleave(len(ours)))
        streams = (_FIRST_STREAM + first_view + ours).repeat(num_images)
        parts.append(_Part(setting, rows, ViewNumbers.draw(seed, row_keys, streams)))
    return parts


def _teachers_copies(
    done: Tensor, pixels: Tensor, parts: Sequence[_Part], probabilities: Sequence[float]
) -> Tensor | None:
    """The student's global views with those replaced that the teacher sees in the other mode; None if there are none.

    Args:
        done: (B * V, 3, side, side) the student's.
        pixels: (B * V, 3, side, side) before augmentation.
        parts: of the global views.
        probabilities: of the teacher's patch mode, one for each part.
    """
    copies: Tensor | None = None
    for part, probability in zip(parts, probabilities, strict=True):
        patch_mode = part.numbers.in_patch_mode(probability)
        others = patch_mode != part.numbers.in_patch_mode(part.settings.patch_probability)
        if others.any():
            copies = done.clone() if copies is None else copies
            rows, numbers = part.rows[others], part.numbers[others]
            fill(copies, pixels, rows, numbers, patch_mode[others], part.settings, finish=normalise_)
    return copies


def _check(
    groups: Sequence[ViewGroup],
    keys: SampleKeys,
    settings: Sequence[PhotometricSettings],
    teacher_patch_probability: Sequence[float] | None,
) -> None:
    if any(len(group.pixels) != len(keys) for group in groups):
        sizes = ", ".join(str(len(group.pixels)) for group in groups)
        raise ValueError(f"{len(keys)} keys for views of {sizes} images; give the key of each image")
    teacher = [] if teacher_patch_probability is None else list(teacher_patch_probability)
    if teacher_patch_probability is not None and len(teacher) != 2:
        raise ConfigError(
            f"teacher_patch_probability holds {len(teacher)} numbers, {teacher}; give 2, for the first global view "
            "and for the others"
        )
    if not all(0 <= probability <= 1 for probability in teacher):
        raise ConfigError(f"teacher_patch_probability is {teacher}; give probabilities from 0 to 1")
    for number, group in enumerate(groups):
        ours = settings[:2] if number == 0 else settings[2:]
        if any(setting.patch_probability for setting in ours) or (number == 0 and any(teacher)):
            check_cells(group.side_px, ours[0].cell_px)
