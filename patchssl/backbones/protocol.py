"""The interface of every backbone: pixels to tokens, and what a result row says about the network."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from patchssl.backbones.preprocess import CROP, Preprocess
from patchssl.backbones.report import LoadReport
from patchssl.backbones.sizes import Sizes
from patchssl.errors import ConfigError
from patchssl.structs import Tokens

_PROTOCOL_PX, _PROTOCOL_RESIZE_PX = 224, 256

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
        family: `patchssl`, `dino`, `ibot`, `pwself`, `dinov2`, `dinov3`, `timm`, `torchvision`, `floor` …
        arch: the architecture's name.
        dim: D, the width of its class token or pooled feature; patches of a network of stages may have another.
        patch_px: side of a patch, or for a network of stages how many pixels a cell of its last map spans.
        num_params: number of parameters.
        weights_sha256: hash of all names, types, shapes and values of its state.
        preprocess: how images are prepared for it.
        pooling: what its `cls` is: `cls` for a class token, `mean` for the mean of the patches, `attention` for a pool
            by attention, `head` for what the classifier of a network of stages is given.
        checkpoint_key: which network of a checkpoint it is, where there are several.
        num_heads: of the attention of the last block; None where there is none.
        num_registers: tokens that are neither class token nor patches.
        positions: how its position embedding comes to other grids; None where it has none.
        sizes: which image sizes it takes.
        load: which weights of a file found their place; None for fresh weights.
        keeps_geometry: whether its own preprocessing holds in every protocol, as for our runs, whose config says it.
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
    num_heads: int | None = None
    num_registers: int = 0
    positions: str | None = None
    sizes: Sizes
    load: LoadReport | None = None
    keeps_geometry: bool = False

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
        **more: Any,
    ) -> "Backbone":
        """Freeze a network and count and hash its weights.

        Any other attribute of the class may be given as well; `sizes` are multiples of the patch unless they are.
        """
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
            **{"sizes": Sizes(multiple_px=patch_px, min_px=patch_px), **more},
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
            **({} if self.load is None else {"load": self.load.brief()}),
        }

    def to(self, device: torch.device | str) -> "Backbone":
        """The same backbone on a device."""
        return replace(self, network=self.network.to(device))

    def at_size(self, image_px: int) -> "Backbone":
        """The same backbone for images of another size, resized and cropped in the same proportion.

        A network that is bound to one size is built anew for it where its library can.

        Raises:
            ConfigError: the network does not take that size.
        """
        network, sizes = self.sizes.fit(self.network, image_px, self.arch)
        changed = replace(self, network=network.eval(), sizes=sizes, preprocess=self.preprocess.at_size(image_px))
        if sizes.trial and image_px != self.preprocess.image_px:
            changed._try()
        return changed

    def with_protocol_geometry(self) -> "Backbone":
        """The same backbone with the geometry of the named classification protocols: bicubic, 256/224, centre crop.

        The crop has 224 px where the network takes any size and was made for at least 224, else the side that it was
        made for. Mean and standard deviation stay the model's. Runs of ours keep their own geometry.
        """
        if self.keeps_geometry:
            return self
        sized = self._at_protocol_size()
        side = sized.preprocess.image_px
        geometry = replace(
            sized.preprocess,
            resize_px=side * _PROTOCOL_RESIZE_PX // _PROTOCOL_PX,
            interpolation="bicubic",
            fit=CROP,
        )
        return replace(sized, preprocess=geometry)

    def with_fit(
        self,
        fit: str,
        *,
        image_px: int,
        interpolation: str = "bicubic",
        scales: tuple[float, ...] = (1.0,),
        unit_scales: bool = False,
    ) -> "Backbone":
        """The same backbone for images that come to their size in another way; mean and standard deviation stay.

        Args:
            fit: of `Preprocess`; without a crop where that may be done, so that resize_px is image_px.
            image_px: of `Preprocess`.
            interpolation: of `Preprocess`.
            scales: of `Preprocess`.
            unit_scales: of `Preprocess`.

        Raises:
            ConfigError: the network is bound to square images of one size, and they would differ; or it does not take
                square images of that size.
        """
        changed = replace(
            self.preprocess,
            image_px=image_px,
            resize_px=image_px,
            fit=fit,
            interpolation=interpolation,
            scales=scales,
            unit_scales=unit_scales,
        )
        if (changed.keeps_proportions or scales != (1.0,)) and self.sizes.fixed_px is not None:
            raise ConfigError(
                f"{self.arch} takes images of {self.sizes.fixed_px} x {self.sizes.fixed_px} px only, and here they "
                "keep their proportions or come at several scales; --preprocess model gives it its own crops"
            )
        sized = self if changed.keeps_proportions else self.at_size(image_px)
        return replace(sized, preprocess=changed)

    def _at_protocol_size(self) -> "Backbone":
        if self.preprocess.image_px >= _PROTOCOL_PX and self.sizes.may_choose(_PROTOCOL_PX):
            # Some networks show only in a pass that they do not take a size.
            with suppress(ConfigError):
                return self.at_size(_PROTOCOL_PX)
        return self

    def _try(self) -> None:
        side = self.preprocess.image_px
        try:
            with torch.inference_mode():
                self.forward(torch.zeros(1, 3, side, side, device=self.device))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise ConfigError(f"image size {side} cannot be had: {self.arch} does not take it ({reason})") from None


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
