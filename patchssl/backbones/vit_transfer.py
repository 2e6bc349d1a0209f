"""The weights of a ViT → the names, layout and grid of another of the same architecture."""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from patchssl.backbones.positions import RESAMPLINGS
from patchssl.backbones.reference_vit import ReferenceViT
from patchssl.backbones.report import LoadReport, fill, listed
from patchssl.errors import CheckpointError

_POSITIONS = "pos_embed"
_PREFIX = ("cls_token", "reg_token")
Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Transfer:
    """How weights came from one ViT to another.

    Attributes:
        report: which found their place; all did.
        grids: of the position embedding, there and here; None where there is none.
    """

    report: LoadReport
    grids: tuple[Grid, Grid] | None


@torch.no_grad()
def transfer(source: VisionTransformer, target: VisionTransformer, *, resampling: str | None, origin: str) -> Transfer:
    """Fill a ViT from another, so that at the size that the target is laid out for both give the same tokens.

    The position embedding comes to the target's grid in the way of the source's family, once. At other sizes the
    target resamples what it then has in timm's way, so that there the two agree only where that is the source's way as
    well and the grids are equal. Networks differ in whether class token and registers have positions; where the target
    gives them none, the source's are added to the tokens.

    Args:
        source: of the target's architecture.
        target: its weights are replaced.
        resampling: a key of `RESAMPLINGS`; None where there is no position embedding.
        origin: the source, for messages.

    Raises:
        CheckpointError: a weight is missing, unexpected or of another shape; the target is then as it was.
    """
    weights = dict(source.state_dict())
    wanted = target.state_dict()
    grids = None
    if _POSITIONS in weights and _POSITIONS in wanted and resampling is not None:
        prefix, patches, grid = _split(source)
        here = _grid(target)
        patches = RESAMPLINGS[resampling](patches, grid[0], here)
        grids = (grid, here)
        if target.no_embed_class:
            weights |= _with_positions(weights, prefix)
            weights[_POSITIONS] = patches
        else:
            weights[_POSITIONS] = torch.cat([prefix, patches], dim=1)
    wrong = sorted(name for name in wanted.keys() | weights.keys() if _shape(weights, name) != _shape(wanted, name))
    if wrong:
        told = [f"{name}: {_shape(weights, name)} there, {_shape(wanted, name)} here" for name in wrong]
        raise CheckpointError(
            f"init {origin} does not fit the configured network: {len(wrong)} of {len(wanted)} weights differ "
            f"({listed(told)}); set model.arch to the architecture that init is of"
        )
    moved = grids is not None and grids[0] != grids[1]
    report = fill(
        target,
        weights,
        origin=origin,
        arch="the configured network",
        advice="",
        resampled=[_POSITIONS] if moved else [],
        allow_partial=None,
    )
    return Transfer(report, grids)


def _split(network: VisionTransformer) -> tuple[Tensor, Tensor, Grid]:
    """Positions (1, P, D) of the P tokens before the patches, of the patches (1, H * W, D), and (H, W)."""
    own = network.pos_embed
    assert own is not None
    if isinstance(network, ReferenceViT):
        num_own, grid = 1, (network.grid_side, network.grid_side)
    else:
        num_own, grid = 0 if network.no_embed_class else network.num_prefix_tokens, _grid(network)
    absent = own.new_zeros(1, network.num_prefix_tokens - num_own, own.shape[2])
    return torch.cat([own[:, :num_own], absent], dim=1), own[:, num_own:], grid


def _with_positions(weights: dict[str, Tensor], prefix: Tensor) -> dict[str, Tensor]:
    """The tokens before the patches with their positions (1, P, D) added."""
    tokens = [weights[name] for name in _PREFIX if name in weights]
    parts = prefix.split([token.shape[1] for token in tokens], dim=1)
    names = [name for name in _PREFIX if name in weights]
    return {name: token + part for name, token, part in zip(names, tokens, parts, strict=True)}


def _grid(network: VisionTransformer) -> Grid:
    height, width = network.patch_embed.grid_size
    return height, width


def _shape(weights: dict[str, Tensor], name: str) -> str:
    return "x".join(map(str, weights[name].shape)) or "scalar" if name in weights else "none"
