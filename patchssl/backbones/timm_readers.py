"""How networks of timm that have no class token are run."""

from typing import Any

from torch import Tensor, nn

from patchssl.errors import ConfigError
from patchssl.structs import Tokens


class TimmMapReader:
    """Runs networks of timm whose summary of an image is a pooled feature: CNNs, networks of stages, pooled ViTs.

    `cls` is what the classifier would be given, `patches` the last feature map before pooling.
    """

    def num_blocks(self, network: nn.Module) -> int:
        """Only the last block has a pooled feature."""
        return 1

    def last_blocks(self, network: Any, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        """The pooled feature and the feature map.

        Args:
            network: of timm.
            pixels: (B, 3, h, w), normalised.
            num: 1.

        Returns:
            cls (B, D), patches (B, H * W, C).
        """
        final, maps = _run(network, pixels)
        pooled = network.forward_head(final, pre_logits=True).flatten(1)
        return (Tokens(pooled, maps.flatten(2).mT, (maps.shape[2], maps.shape[3])),)

    def attention(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """There is none.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{type(network).__name__} has no class token, so there is no attention map of it; take a ViT that has one"
        )


def _run(network: Any, pixels: Tensor) -> tuple[Any, Tensor]:
    """What the head is given, and the last feature map (B, C, H, W), after the final norm where there is one."""
    try:
        final, maps = network.forward_intermediates(pixels, indices=1, norm=True, output_fmt="NCHW")
    except AssertionError as error:
        # Said by networks whose norm belongs to their head.
        if "normalization" not in str(error):
            raise
        final, maps = network.forward_intermediates(pixels, indices=1, norm=False, output_fmt="NCHW")
    if isinstance(final, Tensor) and final.ndim == 4:
        # What is pooled; the last stage may come before a convolution that widens it.
        in_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return final, final.permute(0, 3, 1, 2) if in_last else final
    return final, maps[-1]
