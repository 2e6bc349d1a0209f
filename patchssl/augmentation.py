"""Views as decoded → photometric augmentation by their kind → normalised, on the training device."""

from collections.abc import Sequence

import torch

from patchssl.config import PhotometricConfig
from patchssl.photometric import IMAGENET_MEAN, IMAGENET_STD, PhotometricSettings, augment, normalise
from patchssl.structs import BatchViews, SampleKeys, ViewGroup, as_float

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
) -> BatchViews:
    """Move the views of a batch to the device, augment and normalise them.

    Args:
        groups: the global views and, unless there are none, the local ones; pixels uint8 or float in [0, 1].
        keys: the B samples.
        settings: as from view_settings.
        seed: of the run.
        device: where to compute.
    """
    prepared, first_view = [], 0
    for number, group in enumerate(groups):
        pixels = as_float(group.pixels.to(device, non_blocking=True))
        # The first global view has settings of its own; all other views of a group are alike.
        parts = (
            [(slice(0, 1), settings[0]), (slice(1, None), settings[1])] if number == 0 else [(slice(None), settings[2])]
        )
        views = torch.arange(group.num_views)
        done = []
        for part, setting in parts:
            chosen = pixels[:, part]
            num_images, num_views = chosen.shape[:2]
            row_keys = SampleKeys(*(value.repeat_interleave(num_views) for value in (keys.epoch, keys.index)))
            streams = (_FIRST_STREAM + first_view + views[part]).repeat(num_images)
            augmented = augment(chosen.flatten(0, 1), setting, seed=seed, keys=row_keys, stream=streams)
            done.append(augmented.unflatten(0, (num_images, num_views)))
        prepared.append(ViewGroup(normalise(torch.cat(done, dim=1), IMAGENET_MEAN, IMAGENET_STD), group.boxes))
        first_view += group.num_views
    return BatchViews(tuple(prepared), prepared[0])
