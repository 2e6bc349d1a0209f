"""The projection head of DINO and the prototypes behind it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


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
        """The (K, d) weight: each direction scaled to its norm."""
        return self.weight_g * normalize(self.weight_v, dim=1, eps=0)


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
        return normalize(self.mlp(tokens), dim=-1)


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
