"""The interface of every backbone: pixels to tokens, and what a result row says about the network."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from patchssl.backbones.preprocess import Preprocess
from patchssl.errors import ConfigError
from patchssl.structs import Tokens

__all__ = ["Backbone", "Preprocess", "Reader", "fresh_weights", "hash_weights"]


class Reader(Protocol):
    """How the networks of a family are run. It holds no weights, so that one serves every network of the family."""

    def num_blocks(self, network: Any) -> int:
        """How many blocks of equal width the network ends with; 1 for a network of stages."""
        ...

    def last_blocks(self, network: Any, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        """The tokens after each of the last num blocks, each through the final norm, the last block last.

        Args:
            network: of this family.
            pixels: (B, 3, h, w) float, normalised.
            num: 1 to num_blocks.
        """
        ...

    def attention(self, network: Any, pixels: Tensor) -> Tensor:
        """(B, heads, T, T) attention of the last block after its softmax; T counts prefix tokens, then patches.

        Raises:
            ConfigError: the network has no such thing.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen network with the facts about it.

    Attributes:
        network: the module, in evaluation mode, without gradients.
        reader: runs the network on normalised pixels.
        spec: the SPEC that named it.
        family: `patchssl`, `timm`, `floor` …
        arch: the architecture's name.
        dim: D, the width of its tokens.
        patch_px: side of a patch.
        num_params: number of parameters.
        weights_sha256: hash of all names, types, shapes and values of its state.
        preprocess: how images are prepared for it.
        pooling: what its `cls` is: `cls` for a class token, `mean` for the mean of the patches.
        checkpoint_key: which network of a checkpoint it is, where there are several.
    """

    network: nn.Module
    reader: Reader
    spec: str
    family: str
    arch: str
    dim: int
    patch_px: int
    num_params: int
    weights_sha256: str
    preprocess: Preprocess
    pooling: str = "cls"
    checkpoint_key: str | None = None

    @classmethod
    def of(
        cls,
        network: nn.Module,
        reader: Reader,
        *,
        spec: str,
        family: str,
        arch: str,
        dim: int,
        patch_px: int,
        preprocess: Preprocess,
        pooling: str = "cls",
        checkpoint_key: str | None = None,
    ) -> "Backbone":
        """Freeze a network and count and hash its weights."""
        frozen = network.eval().requires_grad_(False)
        return cls(
            network=frozen,
            reader=reader,
            spec=spec,
            family=family,
            arch=arch,
            dim=dim,
            patch_px=patch_px,
            num_params=sum(parameter.numel() for parameter in frozen.parameters()),
            weights_sha256=hash_weights(frozen.state_dict()),
            preprocess=preprocess,
            pooling=pooling,
            checkpoint_key=checkpoint_key,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(itertools.chain(self.network.parameters(), self.network.buffers())).device

    def forward(self, pixels: Tensor) -> Tokens:
        """Run the network.

        Args:
            pixels: (B, 3, h, w) float, normalised, on the network's device.
        """
        return self.last_blocks(pixels, 1)[0]

    @property
    def num_blocks(self) -> int:
        """How many blocks `last_blocks` can give; 1 for a network of stages."""
        return self.reader.num_blocks(self.network)

    def last_blocks(self, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        """The tokens after each of the last num blocks, each through the final norm, the last block last.

        Args:
            pixels: (B, 3, h, w) float, normalised, on the network's device.
            num: 1 to num_blocks.

        Raises:
            ConfigError: there are not so many blocks.
        """
        if not 1 <= num <= self.num_blocks:
            raise ConfigError(f"{num} last blocks of {self.arch} are asked for; allowed: 1 to {self.num_blocks}")
        return self.reader.last_blocks(self.network, pixels, num)

    def attention(self, pixels: Tensor) -> Tensor:
        """(B, heads, T, T) attention of the last block after its softmax; T counts prefix tokens, then patches.

        Args:
            pixels: (B, 3, h, w) float, normalised, on the network's device.

        Raises:
            ConfigError: the network has no such thing.
        """
        return self.reader.attention(self.network, pixels)

    def facts(self) -> dict[str, Any]:
        """The `model` part of a result row."""
        return {
            "spec": self.spec,
            "family": self.family,
            "arch": self.arch,
            "num_params": self.num_params,
            "dim": self.dim,
            "weights_sha256": self.weights_sha256,
        }

    def to(self, device: torch.device | str) -> "Backbone":
        """The same backbone on a device."""
        return replace(self, network=self.network.to(device))

    def at_size(self, image_px: int) -> "Backbone":
        """The same backbone for images of another size, resized and cropped in the same proportion.

        Raises:
            ConfigError: the size is not a multiple of the patch.
        """
        if image_px < self.patch_px or image_px % self.patch_px:
            below = max(image_px // self.patch_px, 1) * self.patch_px
            raise ConfigError(
                f"image size {image_px} is not a multiple of the patch size {self.patch_px} of {self.arch}; "
                f"the nearest are {below} and {below + self.patch_px}"
            )
        return replace(self, preprocess=self.preprocess.at_size(image_px))


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
        # Seen as bytes, since numpy has no bfloat16.
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def fresh_weights(seed: int) -> Iterator[None]:
    """Make modules built inside draw their weights from a seed; the global generator is afterwards as it was.

    Module constructors draw from torch's global CPU generator and take no other, so it is lent to them here.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the accelerators as well.
        torch.default_generator.manual_seed(seed)
        yield
