"""The named protocols of linear probing: what they read of a backbone, their options and defaults."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from patchssl.errors import ConfigError
from patchssl.pooling import parse_tokens

# DINO reads the class tokens of the last 4 blocks of a ViT-S, and the last block's class token and mean of a ViT-B.
_NARROW_DIM, _NUM_BLOCKS = 384, 4
_BY_WIDTH = (
    f"by width: up to {_NARROW_DIM}, class tokens of the last {_NUM_BLOCKS} blocks; above, class token and mean of the "
    "patches of the last block"
)
_SWEPT_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearProtocol:
    """What a named protocol sets.

    Attributes:
        name: of the protocol.
        needs_images: whether it trains on augmented images rather than on features.
        features: what it reads of a backbone, in words.
        augmentation: of the training images, in words.
        selection: how the number that stands first is chosen, in words.
        defaults: of its options; all protocols also take `blocks` and `avgpool`.
    """

    name: str
    needs_images: bool
    features: str
    augmentation: str
    selection: str
    defaults: Mapping[str, Any]

    @property
    def options(self) -> tuple[str, ...]:
        """The options it takes."""
        return ("blocks", "avgpool", *self.defaults)


PROTOCOLS: Mapping[str, LinearProtocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            LinearProtocol(
                name="dino",
                needs_images=True,
                features=_BY_WIDTH,
                augmentation="random resized crop (bilinear, 8 to 100 % of the area, ratio 3/4 to 4/3), "
                "mirrored half of the time",
                selection="none: the head after the last epoch",
                defaults={"epochs": 100, "learning_rates": (1e-3,), "train_batch_size": 1024},
            ),
            LinearProtocol(
                name="dinov2",
                needs_images=False,
                features=f"the best of: class tokens of the last 1 or {_NUM_BLOCKS} blocks, each with and without the "
                "mean of the patches of the last",
                augmentation="none (one feature pass)",
                selection="the head with the highest accuracy on held-out training images, of equal ones the lowest "
                "log-loss",
                defaults={
                    "iterations": 12_500,
                    "learning_rates": _SWEPT_RATES,
                    "train_batch_size": 128,
                    "val_fraction": 0.1,
                },
            ),
            LinearProtocol(
                name="logistic",
                needs_images=False,
                features="class token of the last block",
                augmentation="none (one feature pass)",
                selection="C with the lowest log-loss on held-out training images; fitted again on all of them",
                defaults={"val_fraction": 0.1},
            ),
        )
    }
)


def find_protocol(name: str) -> LinearProtocol:
    """The protocol of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol {name!r} is unknown to linear probing; allowed: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def foreign_option(protocol: str, given: Mapping[str, Any]) -> tuple[str, tuple[str, ...]] | None:
    """The first option that is given but not one of the protocol's, with the protocols that take it."""
    for name, value in given.items():
        if value is not None and name not in find_protocol(protocol).options:
            return name, tuple(other.name for other in PROTOCOLS.values() if name in other.options)
    return None


def settle(protocol: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a protocol's options: those given, and its defaults where None is.

    Args:
        protocol: its name.
        given: by name, without `blocks` and `avgpool`.

    Raises:
        ConfigError: the protocol is unknown, does not take an option, or a value is out of range.
    """
    foreign = foreign_option(protocol, given)
    if foreign is not None:
        raise ConfigError(f"{foreign[0]} is no option of the protocol {protocol}; it is one of {', '.join(foreign[1])}")
    defaults = find_protocol(protocol).defaults
    options = {name: default if given.get(name) is None else given[name] for name, default in defaults.items()}
    for name in ("epochs", "iterations", "train_batch_size"):
        if options.get(name, 1) < 1:
            raise ConfigError(f"{name} is {options[name]}; it must be at least 1")
    rates = options.get("learning_rates", (1.0,))
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ConfigError(f"learning rates are {rates}; give at least one, each above 0")
    if protocol == "dino" and len(rates) > 1:
        raise ConfigError(f"{len(rates)} learning rates are given; the protocol dino trains one head: give one")
    if not 0 < options.get("val_fraction", 0.5) < 1:
        raise ConfigError(f"val_fraction is {options['val_fraction']}; allowed: above 0 and below 1")
    return options


def scaled_rate(rate: float, batch_size: int) -> float:
    """The learning rate that SGD applies, from one for 256 images in a batch, as both originals scale it."""
    return rate * batch_size / 256


def needed_tokens(
    protocol: str, *, num_blocks: int, dim: int, blocks: int | None = None, avgpool: bool | None = None
) -> list[str]:
    """What must be taken of a backbone; for `dino`, of the test images.

    For `dinov2` it is the widest choice, of which all others are columns.

    Args:
        protocol: its name.
        num_blocks: how many last blocks the backbone gives.
        dim: D, the width of its tokens.
        blocks: how many of them to read; None for the protocol's choice.
        avgpool: whether to add the mean of the patches; None for the protocol's choice.

    Returns:
        Choices of tokens as `patchssl.pooling.parse_tokens` reads them.

    Raises:
        ConfigError: the protocol is unknown, or there are not so many blocks.
    """
    find_protocol(protocol)
    if blocks is not None and not 1 <= blocks <= num_blocks:
        raise ConfigError(f"blocks is {blocks}; the backbone gives 1 to {num_blocks} of its last blocks")
    narrow = dim <= _NARROW_DIM
    most = min(_NUM_BLOCKS, num_blocks)
    # DINOv2 sweeps over several choices, and regresses on the plainest.
    if blocks is None:
        blocks = {"dinov2": most, "logistic": 1}.get(protocol, most if narrow else 1)
    if avgpool is None:
        avgpool = {"dinov2": True, "logistic": False}.get(protocol, not narrow)
    return [_tokens(blocks, avgpool)]


def _tokens(blocks: int, avgpool: bool) -> str:
    return ("cls" if blocks == 1 else f"cls:{blocks}") + ("+mean" if avgpool else "")


def feature_sets(
    tokens: str, width: int, *, blocks: int | None = None, avgpool: bool | None = None
) -> dict[str, tuple[int, int]]:
    """The choices of tokens that `dinov2` compares, as columns of the widest.

    Args:
        tokens: the widest choice, as from needed_tokens.
        width: of its features.
        blocks: what the user chose; None compares the last block with all of them.
        avgpool: what the user chose; None compares without and with the mean of the patches.

    Returns:
        Choice → first and end of its columns.

    Raises:
        ConfigError: the width is not that of so many tokens.
    """
    parts = parse_tokens(tokens)
    dim, rest = divmod(width, len(parts))
    if rest:
        raise ConfigError(f"features of {tokens} are {width} wide; it must be a multiple of {len(parts)}")
    num_cls = sum(part.kind == "cls" for part in parts)
    pools = [avgpool] if avgpool is not None else sorted({False, len(parts) > num_cls})
    counts = [num_cls] if blocks is not None else sorted({1, num_cls})
    return {
        _tokens(count, pool): ((num_cls - count) * dim, (num_cls + pool) * dim) for count in counts for pool in pools
    }
