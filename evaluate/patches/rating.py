"""The views of a batch → which of their patches are found again, and the hits of every image."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchssl.evaluate.patches.hits import chance_within, found_distances, pixel_patches, position_distances, within
from patchssl.evaluate.patches.warped_pairs import WarpedViews
from patchssl.photometric import normalise
from patchssl.structs import as_float
from patchssl.warps import patch_places

FOUND = "found"
#: What stands beside the patches that a backbone finds: one drawn by chance, the one at the same place of the grid, and
#: the one whose pixels, averaged to 4 x 4 and normalised by ImageNet's mean and deviation, are most similar.
FLOORS = ("chance", "position", "raw_patches")
RATERS = (FOUND, *FLOORS)

_CELLS = 4  # of raw patches


def metric_name(radius: float, kind: str | None = None) -> str:
    """`acc_at_1`, the mean over the kinds of warps, or `acc_at_1@flip`."""
    return f"acc_at_{radius:g}" + ("" if kind is None else f"@{kind}")


@torch.inference_mode()
def rate(
    warped: WarpedViews, features: Tensor, grid: tuple[int, int], radii: Sequence[float]
) -> tuple[dict[str, Tensor], Tensor]:
    """Look for the patches of the first views in the second.

    Args:
        warped: views of B images.
        features: (B, V, N, D) of their patches.
        grid: (H, W) with H * W = N.
        radii: R of them, in patches.

    Returns:
        For each rater (B, K, R) hits, added up over the patches that count, those that both views show; and how many
        do, (B, K).
    """
    first, second = warped.matrices[:, :1].numpy(), warped.matrices[:, 1:].numpy()
    where = patch_places(first, second, grid, view_px=warped.pixels.shape[-1])  # (B, K, N, 2)
    counted = torch.from_numpy(((where >= 0) & (where < np.array([grid[1], grid[0]]))).all(-1)).to(features.device)
    places = torch.from_numpy(where.astype(np.float32)).to(features.device)
    pixels = normalise(as_float(warped.pixels.to(features.device, non_blocking=True)))
    raw = pixel_patches(pixels.flatten(0, 1), grid, _CELLS).unflatten(0, pixels.shape[:2])  # (B, V, N, d)
    sums: dict[str, list[Tensor]] = {name: [] for name in RATERS}
    for kind in range(places.shape[1]):
        place, weight = places[:, kind], counted[:, kind, :, None].float()
        hits = {
            "found": within(found_distances(features[:, 0], features[:, 1 + kind], place, grid), radii),
            "chance": chance_within(place, grid, radii),
            "position": within(position_distances(place, grid), radii),
            "raw_patches": within(found_distances(raw[:, 0], raw[:, 1 + kind], place, grid), radii),
        }
        for name, values in hits.items():
            sums[name].append((values * weight).sum(1))
    return {name: torch.stack(values, dim=1) for name, values in sums.items()}, counted.sum(-1)


class Tally:
    """Hits of every image, added up over its pairs of views."""

    def __init__(self, images: NDArray[np.int64], kinds: Sequence[str], radii: Sequence[float]) -> None:
        """Begin with nothing.

        Args:
            images: (M,) places in the source, ascending.
            kinds: of warps, K of them.
            radii: R of them.
        """
        self.images, self.kinds, self.radii = images, kinds, radii
        shape = (len(images), len(kinds))
        self.sums = {name: np.zeros((*shape, len(radii))) for name in RATERS}
        self.num_patches = np.zeros(shape, dtype=np.int64)
        self.is_read = np.zeros(len(images), dtype=bool)
        self.seconds = 0.0

    def add(self, index: NDArray[np.int64], sums: Mapping[str, Tensor], num_patches: Tensor) -> None:
        """Take note of what `rate` gave for images at the places `index` (B,) of the source."""
        rows = np.searchsorted(self.images, index)
        for name, values in sums.items():
            np.add.at(self.sums[name], rows, values.cpu().double().numpy())
        np.add.at(self.num_patches, rows, num_patches.cpu().numpy())
        self.is_read[rows] = True

    def values(self, rater: str) -> dict[str, NDArray[np.float64]]:
        """For each metric the value of every readable image; NaN where it does not count.

        For the mean over the kinds an image counts if it does for each of them.
        """
        num = self.num_patches[self.is_read]
        shares = self.sums[rater][self.is_read] / np.where(num, num, np.nan)[..., None]  # (M, K, R)
        told = {metric_name(radius): of_radius.mean(1) for radius, of_radius in self._by_radius(shares)}
        for place, kind in enumerate(self.kinds):
            told |= {metric_name(radius, kind): each[:, place] for radius, each in self._by_radius(shares)}
        return told

    def _by_radius(self, shares: NDArray[np.float64]) -> list[tuple[float, NDArray[np.float64]]]:
        return [(radius, shares[..., place]) for place, radius in enumerate(self.radii)]
