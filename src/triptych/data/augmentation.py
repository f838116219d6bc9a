"""Augmentation as a function of an image and its random numbers.

Images that lie in memory are augmented a batch at a time; files, whose sizes differ, one by one.
Either way a result depends on (seed, epoch, index) alone.

Shapes: B batch, C image channels, H and W image size in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from triptych.data.samples import SampleKey
from triptych.seeding import derive_seed, forked_rng, uniforms

_RAND_AUGMENT = re.compile(r"rand(-(m|n|mmax|inc)\d+|-(p|mstd)\d+(\.\d+)?)*")
_ASPECT_RATIO = (3 / 4, 4 / 3)
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 10 / 3)
_NUM_UNIFORMS = 12

Uniforms = NDArray[np.float64]


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, in this order; the default does nothing.

    Args:
        random_resized_crop: smallest and largest share of the image area in a crop that is
            resized to the full size, with an aspect ratio from 3/4 to 4/3.
        crop_padding: zero pixels around the image before a crop of the image size is taken.
        flip: probability of a left-right flip.
        rand_augment: RandAugment in timm's notation, for example ``rand-m9-mstd0.5-inc1``.
        color_jitter: strength s; brightness, contrast and saturation change by 1 − s to 1 + s.
        erasing: probability that a rectangle (2 % to a third of the image) becomes the mean.

    Raises:
        ValueError: a value is out of range, or both ways to crop are on.
    """

    crop_padding: int = 0
    flip: float = 0.0
    random_resized_crop: tuple[float, float] | None = None
    erasing: float = 0.0
    rand_augment: str | None = None
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding must be at least 0, got {self.crop_padding}")
        if self.color_jitter < 0:
            raise ValueError(f"color_jitter must be at least 0, got {self.color_jitter}")
        for name in ("flip", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        scale = self.random_resized_crop
        if scale is not None and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise ValueError(
                f"random_resized_crop must be two shares with 0 < smallest <= largest <= 1, "
                f"got {tuple(scale)}"
            )
        if scale is not None and self.crop_padding:
            raise ValueError(
                f"crop_padding={self.crop_padding} and random_resized_crop={tuple(scale)} are two "
                f"ways to crop; only one can be on"
            )
        if self.rand_augment is not None and not _RAND_AUGMENT.fullmatch(self.rand_augment):
            raise ValueError(
                f"rand_augment must be written like rand-m9-mstd0.5-inc1, got {self.rand_augment}"
            )


class BatchAugmenter:
    """Augments uint8 images (B, C, H, W) of one size, and erases in normalised ones."""

    def __init__(
        self, augmentation: Augmentation, mean: Sequence[float], size: int, seed: int
    ) -> None:
        self.augmentation = augmentation
        self.seed = seed
        self.photometric = photometric_transforms(augmentation, mean, size)

    def draw(self, keys: Sequence[SampleKey]) -> Uniforms:
        """The random numbers of a batch, (B, 12), one column for each use."""
        epochs, indices = zip(*keys, strict=True)
        return uniforms(self.seed, epochs, indices, _NUM_UNIFORMS)

    def move(self, images_BCHW: Tensor, keys: Sequence[SampleKey], u: Uniforms) -> Tensor:
        """Crop, flip and change the colours of uint8 images."""
        augmentation = self.augmentation
        if augmentation.random_resized_crop is not None:
            images_BCHW = resized_crops(images_BCHW, augmentation.random_resized_crop, u[:, 0:4])
        if augmentation.crop_padding:
            images_BCHW = padded_crops(images_BCHW, augmentation.crop_padding, u[:, 4:6])
        if augmentation.flip:
            flipped_B = torch.from_numpy(u[:, 6] < augmentation.flip)[:, None, None, None]
            images_BCHW = torch.where(flipped_B, images_BCHW.flip(3), images_BCHW)
        if self.photometric:
            images_BCHW = torch.stack(
                [self._recolour(image, key) for image, key in zip(images_BCHW, keys, strict=True)]
            )
        return images_BCHW

    def erase(self, normalised_BCHW: Tensor, u: Uniforms) -> Tensor:
        """Set one rectangle to 0 (the mean) in some of the normalised images."""
        if not self.augmentation.erasing:
            return normalised_BCHW
        return erased(normalised_BCHW, self.augmentation.erasing, u[:, 7:12])

    def _recolour(self, image_CHW: Tensor, key: SampleKey) -> Tensor:
        with forked_rng(image_seed(self.seed, key)):
            image = vision.to_pil_image(image_CHW)
            for transform in self.photometric:
                image = transform(image)
            return vision.pil_to_tensor(image)


def image_seed(seed: int, key: SampleKey) -> int:
    """Seed of what is drawn for one image alone."""
    return derive_seed(seed, "image", key.epoch, key.index)


def photometric_transforms(
    augmentation: Augmentation, mean: Sequence[float], size: int
) -> list[v2.Transform]:
    """RandAugment and colour jitter on PIL images; they draw from the global generators."""
    transforms: list[v2.Transform] = []
    if augmentation.rand_augment is not None:
        fill = tuple(min(255, round(255 * value)) for value in mean)
        hparams = {
            "translate_const": int(size * 0.45),
            "img_mean": fill if len(fill) > 1 else fill[0],
            "interpolation": Image.Resampling.BILINEAR,
        }
        transforms.append(rand_augment_transform(augmentation.rand_augment, hparams))
    if augmentation.color_jitter:
        strength = augmentation.color_jitter
        transforms.append(v2.ColorJitter(strength, strength, strength))
    return transforms


def resized_crops(images_BCHW: Tensor, scale: tuple[float, float], u: Uniforms) -> Tensor:
    """Random crops resized to the full size, bilinear, from four columns of ``u``.

    A crop that would be wider or higher than the image is as wide or as high as the image.
    """
    area = scale[0] + (scale[1] - scale[0]) * u[:, 0]
    ratio = _log_uniform(_ASPECT_RATIO, u[:, 1])
    width, height = np.minimum(1, np.sqrt(area * ratio)), np.minimum(1, np.sqrt(area / ratio))
    theta = np.zeros((len(u), 2, 3))
    theta[:, 0, 0], theta[:, 0, 2] = width, (1 - width) * (2 * u[:, 2] - 1)
    theta[:, 1, 1], theta[:, 1, 2] = height, (1 - height) * (2 * u[:, 3] - 1)
    grid = F.affine_grid(
        torch.from_numpy(theta).float(), list(images_BCHW.shape), align_corners=False
    )
    crops = F.grid_sample(images_BCHW.float(), grid, padding_mode="border", align_corners=False)
    return crops.round().to(torch.uint8)


def padded_crops(images_BCHW: Tensor, padding: int, u: Uniforms) -> Tensor:
    """Crops of the image size from the zero-padded images, from two columns of ``u``."""
    batch, channels, height, width = images_BCHW.shape
    padded = F.pad(images_BCHW, (padding,) * 4)
    offset_B2 = torch.from_numpy(np.floor(u * (2 * padding + 1)).astype(np.int64))
    rows = (offset_B2[:, :1] + torch.arange(height))[:, None, :, None]
    columns = (offset_B2[:, 1:] + torch.arange(width))[:, None, None, :]
    which = torch.arange(batch)[:, None, None, None]
    return padded[which, torch.arange(channels)[None, :, None, None], rows, columns]


def erased(images_BCHW: Tensor, probability: float, u: Uniforms) -> Tensor:
    """Zero a rectangle in the images that are hit, from five columns of ``u``."""
    height, width = images_BCHW.shape[2:]
    area = _ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * u[:, 1]
    ratio = _log_uniform(_ERASED_RATIO, u[:, 2])
    rows = np.clip(np.rint(height * np.sqrt(area * ratio)), 1, height)
    columns = np.clip(np.rint(width * np.sqrt(area / ratio)), 1, width)
    top = np.floor(u[:, 3] * (height - rows + 1))
    left = np.floor(u[:, 4] * (width - columns + 1))
    inside_rows = _between(height, top, top + rows)
    inside_columns = _between(width, left, left + columns)
    hit = u[:, 0] < probability
    mask = hit[:, None, None] & inside_rows[:, :, None] & inside_columns[:, None, :]
    return images_BCHW.masked_fill(torch.from_numpy(mask)[:, None], 0)


def _log_uniform(limits: tuple[float, float], u: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.log(limits)
    return np.exp(low + (high - low) * u)


def _between(size: int, low: NDArray, high: NDArray) -> NDArray[np.bool_]:
    places = np.arange(size)[None, :]
    return (places >= low[:, None]) & (places < high[:, None])
