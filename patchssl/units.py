"""Units, which are views or cells of views: the parameters of many, and doing to each what its own say."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor

from patchssl.blur import gaussian_blur
from patchssl.colour import JitterPlan, jitter_, solarise, to_greyscale

_NUM_BLENDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitParameters:
    """What happens to M units. All tensors are on the CPU, so that no GPU is waited for to learn how many do what.

    Attributes:
        blends: (M, 3, 3) of a JitterPlan.
        turn: (M,) of the hue.
        num_before: (M,) int64 how many blends come before the hue is turned; -1 where colours are not jittered.
        greyed: (M,) bool.
        blurred: (M,) bool.
        sigma: (M,) px, of those blurred.
        solarised: (M,) bool.
    """

    blends: Tensor
    turn: Tensor
    num_before: Tensor
    greyed: Tensor
    blurred: Tensor
    sigma: Tensor
    solarised: Tensor

    def __len__(self) -> int:
        return len(self.turn)

    def __getitem__(self, key: slice | Tensor) -> "UnitParameters":
        """Select units."""
        return UnitParameters(**{field.name: getattr(self, field.name)[key] for field in fields(self)})

    def sorting(self) -> Tensor:
        """Which unit to take first, second, ...: those that turn their hue later first, as `apply_` needs them."""
        return self.num_before.argsort(descending=True, stable=True)


def apply_(units: Tensor, parameters: UnitParameters, *, blur_radius_px: int, solarise_threshold: float) -> Tensor:
    """Jitter, turn grey, blur and solarise units, in this order and in place, each by its own parameters.

    Args:
        units: (M, 3, h, w) in [0, 1], contiguous.
        parameters: of the units, both in the order of `sorting`.
        blur_radius_px: where kernels are cut off.
        solarise_threshold: pixels at or above it are inverted.

    Returns:
        The units.
    """
    device = units.device
    num_jittered, *num_before = (int((parameters.num_before >= least).sum()) for least in range(_NUM_BLENDS + 1))
    plan = JitterPlan(
        parameters.blends[:num_jittered].to(device, non_blocking=True),
        parameters.turn[:num_jittered].to(device, non_blocking=True),
        tuple(num_before),
    )
    jitter_(units[:num_jittered], plan)
    _change(units, parameters.greyed, lambda some, _: to_greyscale(some))
    _change(
        units,
        parameters.blurred,
        lambda some, rows: gaussian_blur(some, parameters.sigma[rows].to(device, non_blocking=True), blur_radius_px),
    )
    _change(units, parameters.solarised, lambda some, _: solarise(some, solarise_threshold))
    return units


def _change(units: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replace the chosen units by `change(units[rows], rows)`, the rows on the CPU."""
    rows = chosen.nonzero().squeeze(-1)
    if len(rows) == len(units):
        units.copy_(change(units, rows))
    elif len(rows):
        here = rows.to(units.device, non_blocking=True)
        units.index_copy_(0, here, change(units.index_select(0, here), rows))
