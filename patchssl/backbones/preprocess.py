"""An image → the pixels that a backbone sees; by default as in DINO's evaluations (arXiv 2104.14294 §F)."""

from dataclasses import dataclass, replace

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

_MAX_ASPECT = 32


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize, centre crop, normalise.

    Attributes:
        image_px: side of the crop.
        resize_px: length to which the shorter side is resized before it, at least image_px.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.
        interpolation: a key of `INTERPOLATIONS`, by Pillow and so with antialiasing.
        squash: resize both sides to resize_px, whatever the image's proportions.
    """

    image_px: int
    resize_px: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    squash: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(f"interpolation {self.interpolation!r} is unknown; allowed: {', '.join(INTERPOLATIONS)}")
        if not 1 <= self.image_px <= self.resize_px:
            raise ConfigError(f"a crop of {self.image_px} px cannot be cut out of {self.resize_px} px")

    @property
    def resize(self) -> str:
        """How images are resized, in words: part of a result row's settings."""
        return f"{self.interpolation}, {'both sides' if self.squash else 'shorter side'}"

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
        """Resize (Pillow's antialiasing) and cut out the centre.

        The longer side becomes int(resize_px * longer / shorter); the crop starts at round((side - image_px) / 2),
        halves to even: torchvision's Resize and CenterCrop, which DINO uses.

        Args:
            image: RGB of any size.

        Returns:
            (3, image_px, image_px) uint8.
        """
        image = _without_far_ends(image)
        width, height = image.size
        if self.squash:
            size = (self.resize_px, self.resize_px)
        elif width <= height:
            size = (self.resize_px, int(self.resize_px * height / width))
        else:
            size = (int(self.resize_px * width / height), self.resize_px)
        if size != image.size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        left, top = (round((side - self.image_px) / 2) for side in size)
        cropped = image.crop((left, top, left + self.image_px, top + self.image_px))
        # NumPy copies a crop in a hundredth of the time that torch's threads take for it.
        return torch.from_numpy(np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1)))

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


def _without_far_ends(image: Image.Image) -> Image.Image:
    """Cut a strip down around its centre: resized whole, a picture of 1 x 60,000 px would need gigabytes."""
    width, height = image.size
    longest = _MAX_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))
