"""Vision Transformers of our own runs: timm networks whose tokens are read without a head."""

from types import MethodType
from typing import Any

import timm
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchssl.config import ModelConfig
from patchssl.errors import ConfigError
from patchssl.recompute import activate_and_project, recomputed
from patchssl.stochastic_depth import dropped_branches, dropping
from patchssl.structs import Tokens


def build_vit(model: ModelConfig, image_px: int, *, drop_path: float = 0.0) -> VisionTransformer:
    """Build a ViT with fresh weights.

    Args:
        model: architecture and what overrides it.
        image_px: side of the images that its position embedding is laid out for; others are resampled.
        drop_path: stochastic depth rate, 0 for a teacher or an evaluated network.

    Raises:
        ConfigError: timm does not know the architecture, it is no ViT, or width and heads do not fit.
    """
    if not timm.is_model(model.arch):
        raise ConfigError(
            f"model.arch {model.arch!r} is unknown to timm {timm.__version__}; see timm.list_models('vit_*')"
        )
    overrides = {"embed_dim": model.width, "depth": model.depth, "num_heads": model.num_heads}
    settings: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    if model.pooling == "mean":
        # The final norm stays on the tokens, so that patches and their mean are of one kind.
        settings |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    try:
        network = timm.create_model(
            model.arch,
            pretrained=False,
            num_classes=0,
            img_size=image_px,
            patch_size=model.patch_px,
            dynamic_img_size=True,
            drop_path_rate=drop_path,
            **settings,
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"model.arch {model.arch!r} cannot be built with {settings}; pretraining takes ViTs (vit_*): {error}"
        ) from None
    if not isinstance(network, VisionTransformer):
        raise ConfigError(f"model.arch {model.arch!r} is a {type(network).__name__}; pretraining takes ViTs (vit_*)")
    return network


def vit_tokens(network: VisionTransformer, pixels: Tensor) -> Tokens:
    """Run a timm ViT up to its final norm.

    Args:
        network: the ViT, of patch size P.
        pixels: (B, 3, h, w), normalised; P divides h and w.

    Returns:
        cls (B, D), patches (B, h/P * w/P, D); register tokens are dropped. Of a network without a class token, cls is
        the mean of the patches.
    """
    features = network.forward_features(pixels)  # (B, prefix + N, D)
    patch = network.patch_embed.patch_size
    grid = (pixels.shape[-2] // patch[0], pixels.shape[-1] // patch[1])
    patches = features[:, network.num_prefix_tokens :]
    return Tokens(features[:, 0] if network.has_class_token else patches.mean(dim=1), patches, grid)


class ViTReader:
    """Runs Vision Transformers of timm without their head."""

    def num_blocks(self, network: VisionTransformer) -> int:
        """How many blocks there are."""
        return len(network.blocks)

    def last_blocks(self, network: VisionTransformer, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        """The tokens after each of the last num blocks, each through the final norm, the last block last.

        Args:
            network: the ViT, of patch size P.
            pixels: (B, 3, h, w), normalised; P divides h and w.
            num: 1 to num_blocks.

        Returns:
            num times cls (B, D), patches (B, h/P * w/P, D); register tokens are dropped. Of a network without a class
            token, cls is the mean of the patches.
        """
        grid = network.patch_embed.dynamic_feat_size((pixels.shape[-2], pixels.shape[-1]))
        found: Any = network.forward_intermediates(
            pixels, indices=num, norm=True, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        if network.cls_token is not None:
            return tuple(Tokens(prefix[:, 0], patches, grid) for patches, prefix in found)
        # Without prefix tokens timm returns no pairs.
        parts = [part[0] if isinstance(part, tuple) else part for part in found]
        return tuple(Tokens(patches.mean(dim=1), patches, grid) for patches in parts)

    def attention(self, network: VisionTransformer, pixels: Tensor) -> Tensor:
        """(B, heads, T, T) attention of the last block after its softmax; T counts prefix tokens, then patches.

        Raises:
            ConfigError: it is never formed.
        """
        attention: Any = getattr(network.blocks[-1], "attn", None)
        if not (hasattr(attention, "attn_drop") and hasattr(attention, "fused_attn")):
            raise ConfigError(f"the last block of {type(network).__name__} has no attention that could be read")
        kept: list[Tensor] = []
        # Dropout is where the matrix passes through a module of its own, when it is formed at all.
        handle = attention.attn_drop.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
        fused, attention.fused_attn = attention.fused_attn, False
        try:
            network.forward_features(pixels)
        finally:
            attention.fused_attn = fused
            handle.remove()
        if len(kept) != 1 or kept[0].ndim != 4:
            raise ConfigError(f"the attention of {type(network).__name__} never stands as a matrix that could be read")
        return kept[0]


def use_plain_attention(network: VisionTransformer) -> None:
    """Compute attention as two products and a softmax instead of PyTorch's fused kernel.

    On the CPU in bf16 the fused kernel's backward pass is 2 to 7 times slower than that, from 5 to 400 tokens
    (torch 2.15). The numbers agree to rounding; the attention matrix of a layer is kept for the backward pass.
    """
    for module in network.modules():
        if isinstance(module, Attention):
            # Timm's own switch is global and acts only on networks built after it.
            module.fused_attn = False  # type: ignore[misc]


def recompute_activations(network: VisionTransformer) -> None:
    """Keep the activations between the two layers of each block's MLP for no longer than the forward pass takes.

    A ViT then keeps a fifth less for the backward pass, for one more activation a block; numbers stay as they are, to
    the last bit.
    """
    for module in network.modules():
        # Other kinds of MLP, and those with dropout or a norm between, stay as they are.
        if type(module) is Mlp and not module.drop1.p and isinstance(module.norm, nn.Identity):
            module.forward = MethodType(_lean_mlp, module)  # type: ignore[method-assign]


def recompute_blocks(network: VisionTransformer) -> None:
    """Keep the input of each block for the backward pass, and compute what is inside again, one block at a time.

    Numbers stay as they are, to the last bit; a step takes up to a third longer (Chen et al., 2016).
    """
    for block in network.blocks:
        block.forward = MethodType(_recomputed_block, block)


def _recomputed_block(block: nn.Module, tokens: Tensor, **options: Any) -> Tensor:
    branches = dropped_branches(block)
    # Those of this pass. When the block is computed again, other groups of views have gone through it since.
    factors = [branch.factors for branch in branches]

    def again(tokens: Tensor) -> Tensor:
        with dropping(branches, factors):
            found: Tensor = type(block).forward(block, tokens, **options)
        return found

    return recomputed(again, tokens)


def _lean_mlp(module: Mlp, tokens: Tensor) -> Tensor:
    return activate_and_project(module.act, module.fc2, module.fc1(tokens))
