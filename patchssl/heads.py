"""The projection head of DINO and the prototypes behind it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from patchssl.recompute import activate_and_project

# So many prototypes at a time stay in a CPU's cache between one operation and the next.
_BLOCK_ROWS = 2048


class Prototypes(nn.Module):
    """K directions of width d: a weight-normalised linear map without bias, under DINO's parameter names.

    Attributes:
        weight_g: (K, 1) norms, fixed at 1 where `fixed_norm`.
        weight_v: (K, d) directions, of any length.
    """

    def __init__(self, width: int, num_prototypes: int, *, fixed_norm: bool) -> None:
        """Draw directions as PyTorch's linear layer does; DINO starts from it, too."""
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1), requires_grad=not fixed_norm)
        self.weight_v = nn.Parameter(nn.Linear(width, num_prototypes, bias=False).weight.detach().clone())

    def forward(self) -> Tensor:
        """The (K, d) weight: each direction scaled to its norm; in the precision of products under autocast."""
        device = self.weight_v.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight_v.dtype
        weight: Tensor = _ScaledDirections.apply(self.weight_v, self.weight_g, dtype)
        return weight


class _ScaledDirections(torch.autograd.Function):
    """Weight normalisation (Salimans and Kingma, 2016): rows of a matrix (K, d) scaled to norms (K, 1).

    Written out, because on a CPU automatic differentiation takes six times as long for a matrix of 65,536 rows as
    these two passes over it do.
    """

    @staticmethod
    def forward(ctx: Any, directions: Tensor, norms: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(directions, norms)
        weight = torch.empty_like(directions, dtype=dtype)
        for out, rows, norm in _blocks(weight, directions, norms):
            out.copy_(rows * (norm / torch.linalg.vector_norm(rows, dim=1, keepdim=True)))
        return weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        directions, norms = ctx.saved_tensors
        moved = torch.empty_like(directions)
        scaled = torch.empty_like(norms) if ctx.needs_input_grad[1] else None
        for out, rows, norm, wanted, along in _blocks(
            moved, directions, norms, gradient, torch.empty_like(norms) if scaled is None else scaled
        ):
            length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            unit, wanted = rows / length, wanted.to(rows.dtype)
            torch.sum(unit * wanted, dim=1, keepdim=True, out=along)
            torch.addcmul(wanted, unit, along, value=-1, out=out).mul_(norm / length)
        return moved, scaled, None


def _blocks(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(matrix.split(_BLOCK_ROWS) for matrix in matrices), strict=True)


class ProjectionHead(nn.Module):
    """Three linear layers with GELU, L2 norm, prototypes (DINO, Caron et al. 2021, appendix C)."""

    def __init__(
        self, width: int, num_prototypes: int, *, hidden: int = 2048, bottleneck: int = 256, fixed_norm: bool = True
    ) -> None:
        """Build the head.

        Args:
            width: D, of the tokens.
            num_prototypes: K.
            hidden: width of the two hidden layers.
            bottleneck: d, width before the prototypes.
            fixed_norm: keep the prototypes' norms at 1.
        """
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(bottleneck, num_prototypes, fixed_norm=fixed_norm)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project tokens (M, D) to unit rows (M, d); their logits are rows @ prototypes.T."""
        first, *later = self.mlp
        projected = first(tokens)
        for activation, linear in zip(later[::2], later[1::2], strict=True):
            projected = activate_and_project(activation, linear, projected)
        return normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)


def head_state_from_dino(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take a DINO head's parameters under any of the names they were saved with.

    Old weight normalisation keeps `last_layer.weight_g` and `weight_v`; PyTorch's parametrisation calls them
    `last_layer.parametrizations.weight.original0` and `original1`. A prefix up to `head.` is dropped.
    """
    renamed = {
        "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
        "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
    }
    result = {}
    for key, value in state.items():
        name = key.rpartition("head.")[2]
        result[renamed.get(name, name)] = value
    return result
