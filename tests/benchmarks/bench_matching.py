"""How much faster batched matching is than a plain loop over images, pairs of views and patches.

    python tests/benchmarks/bench_matching.py

Exits with 1 where a matching is less than 100 times as fast as the loop over the same geometry.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from patchssl.draws import uniforms
from patchssl.geometry import NUM_BOX_UNIFORMS, draw_boxes
from patchssl.matching import MATCHINGS, nearest
from patchssl.structs import Boxes, PatchMatch, SampleKeys

NUM_IMAGES, NUM_GLOBAL, NUM_LOCAL = 64, 2, 8
GLOBAL_GRID, LOCAL_GRID = (14, 14), (6, 6)
LEAST_RATIO = 100


def draw_views(first: int, num_views: int, scale: tuple[float, float]) -> Boxes:
    """Boxes and flips (B, V) in images of 480 x 640 px."""
    keys = SampleKeys(torch.zeros(NUM_IMAGES, dtype=torch.int64), torch.arange(NUM_IMAGES))
    numbers = torch.stack([uniforms(0, keys, first + view, NUM_BOX_UNIFORMS + 1) for view in range(num_views)], dim=1)
    height, width = torch.full((2, NUM_IMAGES, num_views), 480.0).unbind(0)
    return Boxes(draw_boxes(numbers[..., :-1], height, width * 4 / 3, scale=scale), numbers[..., -1] < 0.5)


def match_batched(name: str, globals_: Boxes, locals_: Boxes) -> list[PatchMatch]:
    """Two calls: (B, 2, 2, 196) of which the two pairs of a view with itself are not used, and (B, 8, 2, 36)."""
    teacher = globals_[:, None, :]
    return [
        MATCHINGS[name](globals_[:, :, None], GLOBAL_GRID, teacher, GLOBAL_GRID),
        MATCHINGS[name](locals_[:, :, None], LOCAL_GRID, teacher, GLOBAL_GRID),
    ]


def match_by_loop(globals_: Boxes, locals_: Boxes) -> dict[tuple[int, int, int], list[int]]:
    """Teacher patch, or -1, of each patch of each student view, for all 18 pairs of each image, in plain Python."""
    views = [
        [View(corners, flipped, grid) for corners, flipped in zip(corners, flips, strict=True)]
        for boxes, grid in ((globals_, GLOBAL_GRID), (locals_, LOCAL_GRID))
        for corners, flips in zip(boxes.corners.transpose(0, 1).tolist(), boxes.flipped.T.tolist(), strict=True)
    ]
    matched = {}
    for image in range(NUM_IMAGES):
        for teacher in range(NUM_GLOBAL):
            for student in range(NUM_GLOBAL + NUM_LOCAL):
                if student != teacher:
                    ours, theirs = views[student][image], views[teacher][image]
                    num_patches = ours.grid[0] * ours.grid[1]
                    matched[image, student, teacher] = [
                        theirs.patch_at(*ours.centre(patch)) for patch in range(num_patches)
                    ]
    return matched


@dataclass(frozen=True, slots=True)
class View:
    """One view in plain numbers."""

    corners: list[float]
    flipped: bool
    grid: tuple[int, int]

    def centre(self, patch: int) -> tuple[float, float]:
        """Where the centre of a patch lies in the image."""
        top, left, height, width = self.corners
        row, col = divmod(patch, self.grid[1])
        if self.flipped:
            col = self.grid[1] - 1 - col
        return top + (row + 0.5) * (height / self.grid[0]), left + (col + 0.5) * (width / self.grid[1])

    def patch_at(self, y: float, x: float) -> int:
        """The patch that shows a place of the image, or -1."""
        top, left, height, width = self.corners
        if not (top <= y < top + height and left <= x < left + width):
            return -1
        row = min(int((y - top) / (height / self.grid[0])), self.grid[0] - 1)
        col = min(int((x - left) / (width / self.grid[1])), self.grid[1] - 1)
        if self.flipped:
            col = self.grid[1] - 1 - col
        return row * self.grid[1] + col


def agree(batched: list[PatchMatch], looped: dict[tuple[int, int, int], list[int]]) -> bool:
    """Whether all patches of all 18 pairs have the same partners."""
    found = [match.index.where(match.mask, -1).tolist() for match in batched]
    return all(
        (found[0][image][student] if student < NUM_GLOBAL else found[1][image][student - NUM_GLOBAL])[teacher]
        == partners
        for (image, student, teacher), partners in looped.items()
    )


def median_s(run: Callable[[], object], num_runs: int) -> float:
    """Median seconds of a run, after one to warm up."""
    run()
    times = []
    for _ in range(num_runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> int:
    """Print the table."""
    globals_, locals_ = draw_views(0, NUM_GLOBAL, (0.4, 1.0)), draw_views(NUM_GLOBAL, NUM_LOCAL, (0.05, 0.4))
    looped = match_by_loop(globals_, locals_)
    if not agree(match_batched("nearest", globals_, locals_), looped):
        print(f"{nearest.__name__} and the loop disagree")
        return 1
    loop_s = median_s(lambda: match_by_loop(globals_, locals_), 5)
    print(f"{NUM_IMAGES} images, {len(looped) // NUM_IMAGES} pairs of views, {torch.get_num_threads()} threads")
    print(f"{'loop':10}{loop_s * 1e3:10.2f} ms")
    slow = False
    for name in MATCHINGS:
        batched_s = median_s(lambda name=name: match_batched(name, globals_, locals_), 31)  # type: ignore[misc]
        print(f"{name:10}{batched_s * 1e3:10.2f} ms{loop_s / batched_s:8.0f} times as fast")
        slow |= name == "nearest" and loop_s / batched_s < LEAST_RATIO
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
