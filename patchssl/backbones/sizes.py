"""Which image sizes a network takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from patchssl.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The sides of square images that a network takes.

    Attributes:
        multiple_px: sides are multiples of this, the side of a patch; 1 for networks without such a rule.
        min_px: the least side.
        fixed_px: the one side that the network, as it is built, takes; None where it takes any.
        rebuild: (network, side) → the same weights in a network for that side; None where the library cannot.
        free: whether a protocol may choose the side, since the network means the same at any.
        trial: whether a pass is needed to know that a side works.
    """

    multiple_px: int = 1
    min_px: int = 1
    fixed_px: int | None = None
    rebuild: Callable[[nn.Module, int], nn.Module] | None = None
    free: bool = True
    trial: bool = False

    def may_choose(self, image_px: int) -> bool:
        """Whether a protocol may take this side."""
        return self.free and image_px % self.multiple_px == 0 and image_px >= self.min_px

    def fit(self, network: nn.Module, image_px: int, arch: str) -> tuple[nn.Module, "Sizes"]:
        """The network for a side, with its sizes: itself, or built anew where it is bound to another side.

        Raises:
            ConfigError: the side is none that it takes.
        """
        if image_px == self.fixed_px:
            return network, self
        self._check(image_px, arch)
        if self.fixed_px is None:
            return network, self
        if self.rebuild is None:
            raise ConfigError(f"image size {image_px} cannot be had: {arch} takes images of {self.fixed_px} px only")
        try:
            rebuilt = self.rebuild(network, image_px)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"image size {image_px} cannot be had: {arch} was built for {self.fixed_px} px and cannot be built for "
                f"that ({' '.join(str(error).split())[:200]})"
            ) from None
        return rebuilt, replace(self, fixed_px=image_px)

    def _check(self, image_px: int, arch: str) -> None:
        if image_px < self.multiple_px or image_px % self.multiple_px:
            below = max(image_px // self.multiple_px, 1) * self.multiple_px
            raise ConfigError(
                f"image size {image_px} is not a multiple of the patch size {self.multiple_px} of {arch}; "
                f"the nearest are {below} and {below + self.multiple_px}"
            )
        if image_px < self.min_px:
            raise ConfigError(f"image size {image_px} is too small for {arch}; it takes {self.min_px} px or more")
