"""Tokens → one vector for an image."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchssl.errors import ConfigError
from patchssl.structs import Tokens

GEM_POWER = 4.0

_KINDS = ("cls", "mean", "gem", "patches")
_PART = re.compile(r"^(cls|mean|gem|patches)(?::([1-9]\d?))?$")
_GEM_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a descriptor.

    Attributes:
        kind: `cls`, `mean` of the patches, `gem` of the patches, or `patches` themselves.
        block: counted from the end; 1 is the last.
    """

    kind: str
    block: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.block}"


def parse_tokens(text: str) -> tuple[Part, ...]:
    """Read a choice of tokens: parts joined by `+`, each `cls`, `mean`, `gem` or `cls:N`.

    `cls:N` is the class tokens of the last N blocks, earliest first; `patches` stands alone.

    Raises:
        ConfigError: it is of another form.
    """
    parts: list[Part] = []
    for word in text.split("+"):
        found = _PART.match(word)
        if found is None or (found[1] == "patches" and word != text) or (found[1] != "cls" and found[2]):
            raise ConfigError(
                f"tokens {text!r} cannot be read; allowed: cls, cls:N (of the last N blocks), mean, gem, joined by + "
                "(cls+gem), or patches alone"
            )
        parts += [Part(found[1], block) for block in range(int(found[2] or 1), 0, -1)]
    return tuple(parts)


def num_blocks_of(parts: Sequence[Part]) -> int:
    """How many of the last blocks are needed."""
    return max(part.block for part in parts)


def pool(blocks: Sequence[Tokens], part: Part) -> Tensor:
    """Make one piece of a descriptor.

    Args:
        blocks: tokens of the last blocks, the last block last.
        part: which piece.

    Returns:
        (B, D); for patches (B, N, D).
    """
    tokens = blocks[-part.block]
    if part.kind == "cls":
        return tokens.cls
    if part.kind == "patches":
        return tokens.patches
    return tokens.patches.mean(dim=1) if part.kind == "mean" else gem(tokens.patches)


def gem(patches: Tensor, power: float = GEM_POWER) -> Tensor:
    """Generalised mean over patches (Radenović et al., TPAMI 2019), as DINO's copy detection takes it.

    Args:
        patches: (B, N, D); values below 1e-6 count as 1e-6.
        power: p of (mean(x^p))^(1/p).

    Returns:
        (B, D) float32.
    """
    return patches.float().clamp(min=_GEM_FLOOR).pow(power).mean(dim=1).pow(1 / power)


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Join the pieces of a descriptor: (B, D) each → (B, sum of D)."""
    return torch.cat(list(parts), dim=-1)
