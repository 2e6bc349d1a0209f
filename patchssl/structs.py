"""The small frozen records that one stage hands to the next.

Letters used in shapes throughout the package: B images, V views, N patches, D width, K prototypes,
(H, W) a grid of patches, M features, Q queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Boxes:
    """Where views lie in their source images.

    Attributes:
        corners: (..., 4) float64: top, left, height, width in pixels of the source image, half-open.
            Fractions of a pixel are meant.
        flipped: (...,) bool: the view shows its box mirrored left to right.
    """

    corners: Tensor
    flipped: Tensor

    def __getitem__(self, key: object) -> "Boxes":
        """Select along the leading dimensions, as a tensor does."""
        return Boxes(self.corners[key], self.flipped[key])  # type: ignore[index]


@dataclass(frozen=True, slots=True)
class PatchMatch:
    """The teacher patch that shows the same place as each student patch.

    Attributes:
        index: (..., N_student) int64: a patch of the teacher view, row-major from 0; 0 where there is none.
        mask: (..., N_student) bool: whether the student patch has a partner at all.
    """

    index: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class ViewGroup:
    """All views of one size of a batch.

    Attributes:
        pixels: (B, V, 3, side, side), uint8 as decoded or float in [0, 1].
        boxes: where each view lies in its image, leading dimensions (B, V).
    """

    pixels: Tensor
    boxes: Boxes

    @property
    def num_views(self) -> int:
        """V, the number of views of each image."""
        return self.pixels.shape[1]

    @property
    def side_px(self) -> int:
        """Height and width of every view."""
        return self.pixels.shape[-1]

    def pin_memory(self) -> "ViewGroup":
        """The same with pixels in page-locked memory, as a data loader asks for before a copy to a GPU."""
        return ViewGroup(self.pixels.pin_memory(), self.boxes)

    def to(self, device: torch.device) -> "ViewGroup":
        """The same with pixels on a device; boxes stay where they are."""
        return ViewGroup(self.pixels.to(device, non_blocking=True), self.boxes)


@dataclass(frozen=True, slots=True)
class CropPlan:
    """Where the views of B images lie, and at what size the images are decoded for them.

    Attributes:
        sides: px, of the views of each group: the global ones and, unless there are none, the local ones.
        boxes: of each group, leading dimensions (B, V); in pixels of the images as they are stored.
        reductions: (B,) int64: 1, 2, 4 or 8; a decoded pixel shows so many stored ones each way.
    """

    sides: tuple[int, ...]
    boxes: tuple[Boxes, ...]
    reductions: Tensor


@dataclass(frozen=True, slots=True)
class BatchViews:
    """All views of a batch, normalised, on the device of the networks.

    Attributes:
        student: the global views and, unless there are none, the local ones.
        teacher: the global views as the teacher sees them; the same object as the student's where nothing differs.
    """

    student: tuple[ViewGroup, ...]
    teacher: ViewGroup


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a backbone makes of a batch of images, after its final norm.

    Attributes:
        cls: (B, D) class token (or the pooled feature of networks without one).
        patches: (B, N, D) patch tokens, row-major, without class token or registers.
        grid: (H, W) with H * W = N.
    """

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Projections:
    """Tokens on their way through a projection head; their logits are rows @ prototypes.T.

    They are kept apart so that a loss can form the logits piece by piece.

    Attributes:
        rows: (M, d) of unit length.
        prototypes: (K, d).
    """

    rows: Tensor
    prototypes: Tensor


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which student row learns from which teacher row.

    Attributes:
        student: (P,) int64 rows of the student's projections.
        teacher: (P,) int64 rows of the teacher's projections.
        view_pair: (P,) int64: the pair of views that this pair of rows belongs to.
    """

    student: Tensor
    teacher: Tensor
    view_pair: Tensor

    def __len__(self) -> int:
        return len(self.student)


@dataclass(frozen=True, slots=True)
class SampleKeys:
    """Which samples a batch holds. Everything random about a sample follows from its key and the seed.

    Attributes:
        epoch: (B,) int64: how often the data had been gone through before this sample.
        index: (B,) int64: the image in its source.
        first_of_batch: epoch and index of the first sample of the whole batch, where these are a share of it.
    """

    epoch: Tensor
    index: Tensor
    first_of_batch: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: object) -> "SampleKeys":
        return SampleKeys(self.epoch[key], self.index[key], self.first_of_batch)  # type: ignore[index]

    def first(self) -> "SampleKeys":
        """The first sample of the whole batch."""
        if self.first_of_batch is None:
            return self[:1]
        epoch, index = self.first_of_batch
        return SampleKeys(torch.tensor([epoch]), torch.tensor([index]))


def as_float(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels into float32 in [0, 1]; floats pass unchanged."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels
