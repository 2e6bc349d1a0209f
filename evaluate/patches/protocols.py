"""The named protocols of correspondence: which warps, how often, of which images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import ConfigError
from patchssl.warps import KINDS

_DRAWING = 2  # keeps the choice of images apart from what else follows from the seed


@dataclass(frozen=True, kw_only=True, slots=True)
class WarpProtocol:
    """The defaults that a named protocol sets.

    Attributes:
        name: of the protocol.
        views: pairs of views of each image and kind.
        kinds: of warps, keys of `patchssl.warps.KINDS`.
        radii: within which a patch counts as found, in patches.
        headline_radius: the one to show first.
    """

    name: str
    views: int = 1
    kinds: tuple[str, ...] = tuple(KINDS)
    radii: tuple[float, ...] = (0.5, 1.0, 2.0)
    headline_radius: float = 1.0


PROTOCOLS = {"warps": WarpProtocol(name="warps")}


def find_protocol(name: str) -> WarpProtocol:
    """The protocol of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"correspondence has no protocol {name!r}; allowed: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def choose_kinds(given: Sequence[str]) -> tuple[str, ...]:
    """Kinds of warps, each once and in the order of `patchssl.warps.KINDS`.

    Raises:
        ConfigError: there is none of a name, or none is given.
    """
    unknown = [name for name in given if name not in KINDS]
    if unknown or not given:
        told = f"kinds of warps {', '.join(map(repr, unknown))} are unknown" if unknown else "no kind of warp is given"
        raise ConfigError(f"{told}; allowed: {', '.join(KINDS)}")
    return tuple(name for name in KINDS if name in given)


def choose_images(num_images: int, max_images: int | None, *, seed: int) -> NDArray[np.int64]:
    """Places of the images to use, ascending: all, or as many as allowed, of which a larger choice holds a smaller."""
    if max_images is None or max_images >= num_images:
        return np.arange(num_images)
    return np.sort(np.random.default_rng([seed, _DRAWING]).permutation(num_images)[:max_images])
