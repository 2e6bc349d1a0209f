"""Views to step on: smooth random pixels in boxes drawn as in training, so that as many patches are matched."""

import torch
from torch import Tensor

from patchssl.config import Config
from patchssl.draws import uniforms
from patchssl.geometry import NUM_BOX_UNIFORMS, draw_boxes, draw_flips
from patchssl.photometric import normalise
from patchssl.structs import BatchViews, Boxes, SampleKeys, ViewGroup

_IMAGE_PX = 480, 640
_COARSE = 6  # side of the random numbers that are enlarged to pixels
_PIXEL_STREAMS = 1 << 8


def sample_keys(num_images: int) -> SampleKeys:
    """The first images of the first epoch."""
    return SampleKeys(torch.zeros(num_images, dtype=torch.int64), torch.arange(num_images))


def batch_views(config: Config, num_images: int, device: torch.device | str = "cpu") -> BatchViews:
    """All views of a batch, normalised; the same ones at every call."""
    views, keys = config.views, sample_keys(num_images)
    groups = [_group(config, keys, 0, views.num_global, views.global_size, views.global_scale)]
    if views.num_local:
        groups.append(_group(config, keys, views.num_global, views.num_local, views.local_size, views.local_scale))
    moved = [ViewGroup(group.pixels.to(device), group.boxes) for group in groups]
    return BatchViews(tuple(moved), moved[0])


def _group(
    config: Config, keys: SampleKeys, first: int, num_views: int, side: int, scale: tuple[float, float]
) -> ViewGroup:
    drawn = torch.stack([uniforms(0, keys, first + view, NUM_BOX_UNIFORMS + 1) for view in range(num_views)], dim=1)
    height, width = (torch.full(drawn.shape[:2], float(length)) for length in _IMAGE_PX)
    corners = draw_boxes(drawn[..., :-1], height, width, scale=scale, ratio=config.views.ratio)
    flipped = draw_flips(drawn[..., -1], config.views.flip_probability)
    pixels = torch.stack([_pixels(keys, _PIXEL_STREAMS + first + view, side) for view in range(num_views)], dim=1)
    return ViewGroup(normalise(pixels), Boxes(corners, flipped))


def _pixels(keys: SampleKeys, stream: int, side: int) -> Tensor:
    """(B, 3, side, side) in [0, 1]."""
    coarse = uniforms(0, keys, stream, 3 * _COARSE**2).unflatten(1, (3, _COARSE, _COARSE))
    return torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
