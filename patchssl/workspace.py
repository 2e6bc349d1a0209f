"""Memory that is kept from step to step."""

import math

import torch
from torch import Tensor

MIB = 1 << 20


class Workspace:
    """Hands out the same memory again and again.

    The operating system clears every page that it gives to a process: taking large blocks anew for each step costs the
    CPU as much time as computing with them does.

    Attributes:
        num_bytes: what the logits of a chunk may take; everything else is small beside them.
    """

    def __init__(self, num_bytes: int = 256 * MIB) -> None:
        """Hold nothing yet."""
        self.num_bytes = num_bytes
        self._blocks: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, *shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised tensor, which shares its memory with the one that was last taken under its name.

        Args:
            name: of the purpose.
            shape: of the tensor.
            like: gives device and dtype.
            dtype: if another is wanted.
        """
        key = name, dtype or like.dtype, like.device
        num = math.prod(shape)
        if key not in self._blocks or self._blocks[key].numel() < num:
            self._blocks[key] = torch.empty(num, dtype=key[1], device=key[2])
        return self._blocks[key][:num].view(shape)

    @property
    def held_bytes(self) -> int:
        """All that it holds by now."""
        return sum(block.nbytes for block in self._blocks.values())

    def max_rows(self, like: Tensor) -> int:
        """How many rows of logits for the prototypes (K, d) fit, at least 16."""
        return max(16, self.num_bytes // (like.element_size() * len(like)))
