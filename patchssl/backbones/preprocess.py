"""An image → the pixels that a backbone sees; by default as in DINO's classification (arXiv 2104.14294 §F)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchssl.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

# How an image comes to its size, and what a result row says of it.
CROP, SQUASH, LONG_SIDE, SHORT_SIDE = "crop", "squash", "long-side", "short-side"
FITS = {
    CROP: ("shorter side", "centre"),
    SQUASH: ("both sides", "centre"),
    LONG_SIDE: ("longer side, never enlarged", "none"),
    SHORT_SIDE: ("shorter side", "none"),
}

_MAX_ASPECT = 32


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize, centre crop, normalise.

    Attributes:
        image_px: side of the crop; for a fit without crop the length of the side that it names.
        resize_px: length to which the shorter side is resized before it, at least image_px.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.
        interpolation: a key of `INTERPOLATIONS`, by Pillow and so with antialiasing.
        fit: `crop` resizes the shorter side to resize_px and cuts out the centre, `squash` resizes both sides to
            resize_px and cuts out the centre; `long-side` shrinks an image until its longer side is image_px and never
            enlarges it, `short-side` resizes the shorter side to image_px, and both keep the whole image, so that
            images differ in size.
        scales: factors by which the normalised pixels are resized (bilinearly); an image's descriptor is the mean over
            all of them.
        unit_scales: whether the descriptor of each scale is L2-normalised before the mean.
    """

    image_px: int
    resize_px: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    fit: str = CROP
    scales: tuple[float, ...] = (1.0,)
    unit_scales: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(f"interpolation {self.interpolation!r} is unknown; allowed: {', '.join(INTERPOLATIONS)}")
        if not 1 <= self.image_px <= self.resize_px:
            raise ConfigError(f"a crop of {self.image_px} px cannot be cut out of {self.resize_px} px")
        if self.fit not in FITS:
            raise ConfigError(f"fit {self.fit!r} is unknown; allowed: {', '.join(FITS)}")
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"scales are {self.scales}; allowed: at least one, each above 0")

    @property
    def resize(self) -> str:
        """How images are resized, in words: part of a result row's settings."""
        return f"{self.interpolation}, {FITS[self.fit][0]}"

    @property
    def keeps_proportions(self) -> bool:
        """Whether images keep their whole content and proportions, and so differ in size."""
        return self.fit in (LONG_SIDE, SHORT_SIDE)

    def settings(self) -> dict[str, Any]:
        """What a result row says of it."""
        scales = {} if self.scales == (1.0,) else {"scales": list(self.scales), "unit_scales": self.unit_scales}
        return {
            "image_px": self.image_px,
            **({} if self.keeps_proportions else {"resize_px": self.resize_px}),
            "resize": self.resize,
            "crop": FITS[self.fit][1],
            "mean": list(self.mean),
            "std": list(self.std),
            **scales,
        }

    def at_size(self, image_px: int) -> "Preprocess":
        """The same for another crop, with the resized side in proportion, rounded down."""
        return replace(self, image_px=image_px, resize_px=image_px * self.resize_px // self.image_px)

    def with_crop_fraction(self, fraction: float) -> "Preprocess":
        """The same crop of another resized image.

        Args:
            fraction: side of the crop over the resized side, above 0 and at most 1; 0.875 is 224 of 256.
        """
        return replace(self, resize_px=int(self.image_px / fraction))

    def crop(self, image: Image.Image) -> Tensor:
        """Resize (Pillow's antialiasing) and cut out the centre, as `fit` says.

        The longer side becomes int(resize_px * longer / shorter); the crop starts at round((side - image_px) / 2),
        halves to even: torchvision's Resize and CenterCrop, which DINO uses. `long-side` is Pillow's thumbnail.

        Args:
            image: RGB of any size.

        Returns:
            (3, h, w) uint8; h and w are image_px unless the fit keeps proportions.
        """
        image = _without_far_ends(image)
        if self.fit == LONG_SIDE:
            image = image.copy()
            image.thumbnail((self.image_px, self.image_px), INTERPOLATIONS[self.interpolation])
            return _as_tensor(image)
        size = self._size(*image.size)
        if size != image.size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        if self.fit == SHORT_SIDE:
            return _as_tensor(image)
        left, top = (round((side - self.image_px) / 2) for side in size)
        return _as_tensor(image.crop((left, top, left + self.image_px, top + self.image_px)))

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing."""
        if self.fit == SQUASH:
            return self.resize_px, self.resize_px
        shorter = self.image_px if self.fit == SHORT_SIDE else self.resize_px
        if width <= height:
            return shorter, int(shorter * height / width)
        return int(shorter * width / height), shorter

    def normalise(self, pixels: Tensor) -> Tensor:
        """Bring pixels to the range that the network was made for.

        Args:
            pixels: (B, 3, h, w) uint8.

        Returns:
            (B, 3, h, w) float32 on the same device.
        """
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return pixels.float().div_(255).sub_(mean).div_(std)


def _as_tensor(image: Image.Image) -> Tensor:
    """(3, h, w) uint8; NumPy copies a crop in a hundredth of the time that torch's threads take for it."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def _without_far_ends(image: Image.Image) -> Image.Image:
    """Cut a strip down around its centre: resized whole, a picture of 1 x 60,000 px would need gigabytes."""
    width, height = image.size
    longest = _MAX_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))
