"""How many heads the attention of a ViT has, which no weight tells."""

import logging
from dataclasses import dataclass
from typing import Any

import timm
import torch

from patchssl.backbones.reference_vit import Anatomy
from patchssl.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

_HEAD_WIDTH = 64
_KNOWN_WIDTHS = (192, 384, 768, 1024, 1536)
_NAMES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1536: "giant2"}


@dataclass(frozen=True, slots=True)
class Named:
    """An architecture by the name that DINO's, iBOT's and DINOv2's scripts give it: width, depth and heads."""

    dim: int
    depth: int
    num_heads: int


ARCHS = {
    "vit_tiny": Named(192, 12, 3),
    "vit_small": Named(384, 12, 6),
    "vit_base": Named(768, 12, 12),
    "vit_large": Named(1024, 24, 16),
    "vit_giant2": Named(1536, 40, 24),
    "deit_tiny": Named(192, 12, 3),
    "deit_small": Named(384, 12, 6),
    "deit_base": Named(768, 12, 12),
}


def arch_name(shape: Anatomy) -> str:
    """A name for an anatomy: `vit_small_patch16`, `vit_base_patch14_reg4`, or with width and depth where unusual."""
    registers = f"_reg{shape.num_registers}" if shape.num_registers else ""
    usual = {(named.dim, named.depth) for named in ARCHS.values()}
    size = _NAMES[shape.dim] if (shape.dim, shape.depth) in usual else f"width{shape.dim}_depth{shape.depth}"
    return f"vit_{size}_patch{shape.patch_px}{registers}"


def num_heads_of(
    shape: Anatomy,
    *,
    num_heads: int | None,
    arch: str | None,
    written: str | None,
    origin: str,
    assumed: int | None = None,
) -> int:
    """Find the number of heads: told, of a named architecture, of a usual width, of the name in the file, or assumed.

    Args:
        shape: of the network in the file.
        num_heads: what the user says.
        arch: the architecture that the user says, of timm or one of `ARCHS`; the file must agree with it.
        written: the architecture that the file says.
        origin: the file, for messages.
        assumed: what counts where nothing tells.

    Raises:
        CheckpointError: the file is not of that architecture, or nothing tells.
        ConfigError: the number does not divide the width, contradicts the architecture, or that one is unknown.
    """
    told = _checked(arch, shape, origin) if arch is not None else None
    if num_heads is not None and told is not None and num_heads != told:
        raise ConfigError(f"--num-heads {num_heads} contradicts --arch {arch}, which has {told}; leave one of them out")
    found = num_heads or told or _found(shape, written, origin, assumed)
    if shape.dim % found:
        raise ConfigError(f"{found} heads do not divide the width {shape.dim} of {origin}; give a divisor of it")
    return found


def _found(shape: Anatomy, written: str | None, origin: str, assumed: int | None) -> int:
    usual = shape.dim // _HEAD_WIDTH if shape.dim in _KNOWN_WIDTHS else None
    named = ARCHS.get(written or "")
    if usual is not None and named is not None and named.num_heads != usual:
        raise CheckpointError(
            f"{origin} calls itself {written}, which has {named.num_heads} heads, and has the width {shape.dim}, which "
            f"usually has {usual}; say which with --num-heads N"
        )
    found = usual or (named.num_heads if named else None)
    if found is None and assumed is not None:
        logger.info("%s does not tell how many heads its attention has; taken: %d", origin, assumed)
        return assumed
    if found is None or shape.dim % found:
        raise CheckpointError(
            f"{origin} is a ViT of width {shape.dim}, and no weight tells how many heads its attention has; give "
            f"--num-heads N, or --arch NAME of timm or one of {', '.join(ARCHS)}"
        )
    return found


def _checked(arch: str, shape: Anatomy, origin: str) -> int:
    """The heads of a named architecture, after comparing it with the file."""
    facts: dict[str, int]
    if arch in ARCHS:
        named = ARCHS[arch]
        facts, num_heads = {"width": named.dim, "blocks": named.depth}, named.num_heads
    else:
        facts, num_heads = _of_timm(arch)
    found = {
        "width": shape.dim,
        "blocks": shape.depth,
        "patch": shape.patch_px,
        "registers": shape.num_registers,
    }
    wrong = [
        f"{name} {value} in {arch}, {found[name]} in the file" for name, value in facts.items() if found[name] != value
    ]
    if wrong:
        raise CheckpointError(
            f"{origin} is not of --arch {arch}: {'; '.join(wrong)}; leave --arch out, since the file tells "
            "these, or name the architecture that it is of"
        )
    return num_heads


def _of_timm(arch: str) -> tuple[dict[str, int], int]:
    if not timm.is_model(arch):
        raise ConfigError(
            f"--arch {arch!r} is unknown to timm {timm.__version__} and none of {', '.join(ARCHS)}; "
            "timm.list_models('vit_*') lists the ViTs of timm"
        )
    with torch.device("meta"):
        network: Any = timm.create_model(arch, num_classes=0)
    try:
        facts = {
            "width": network.embed_dim,
            "blocks": len(network.blocks),
            "patch": network.patch_embed.patch_size[0],
            "registers": network.num_prefix_tokens - 1,
        }
        return facts, network.blocks[0].attn.num_heads
    except AttributeError:
        raise ConfigError(f"--arch {arch!r} is a {type(network).__name__}, and the file holds a ViT") from None
