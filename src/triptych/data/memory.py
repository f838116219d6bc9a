"""Images that lie in memory, all of one size.

Shapes: N samples, B batch, C image channels, H and W size of the raw images, S image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.data.augmentation import Augmentation, BatchAugmenter
from triptych.data.errors import DataError
from triptych.data.samples import Batch, ImageDataset, SampleKey
from triptych.data.splits import Indices

_LARGEST_MARGIN = 5 / 4


@dataclass(frozen=True)
class RawImages:
    """Images (N, C, H, W) uint8 and labels (N,) int64, as a data set gives them."""

    images: Tensor
    labels: Tensor

    def take(self, indices: Indices) -> RawImages:
        """The samples at ``indices``."""
        places = torch.from_numpy(indices)
        return RawImages(self.images[places], self.labels[places])

    def resized(self, size: int) -> RawImages:
        """All images as (S, S); see :func:`fit`."""
        return RawImages(fit(self.images, size), self.labels)


class InMemoryImages(ImageDataset):
    """Raw images (S, S) served as normalised batches, augmented where asked for."""

    def __init__(
        self,
        raw: RawImages,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.labels = raw.images, raw.labels
        # (p / 255 − mean) / std as one multiplication and one addition.
        self.scale = 1 / (255 * _per_channel(std))
        self.shift = -_per_channel(mean) / _per_channel(std)
        self.augmenter = None
        if augmentation not in (None, Augmentation()):
            size = self.images.shape[-1]
            self.augmenter = BatchAugmenter(augmentation, mean, size, seed)

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        indices_B = torch.tensor([index for _, index in keys], dtype=torch.int64)
        images, labels_B = self.images[indices_B], self.labels[indices_B]
        if self.augmenter is None:
            return Batch(self._normalised(images), labels_B, indices_B)
        u = self.augmenter.draw(keys)
        images = self._normalised(self.augmenter.move(images, keys, u))
        return Batch(self.augmenter.erase(images, u), labels_B, indices_B)

    def _normalised(self, images_BCSS: Tensor) -> Tensor:
        return images_BCSS.float() * self.scale + self.shift


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def fit(images_NCHW: Tensor, size: int) -> Tensor:
    """Bring uint8 images to (``size``, ``size``).

    A small margin, up to a quarter of the image, is filled with zeros (28 → 32): that keeps the
    pixels as they are. Anything else is resized, bilinear with antialiasing (8 → 32).
    """
    height, width = images_NCHW.shape[2:]
    sides = (height, width)
    if sides == (size, size):
        return images_NCHW
    if max(sides) <= size <= _LARGEST_MARGIN * min(sides):
        top, left = (size - height) // 2, (size - width) // 2
        return F.pad(images_NCHW, (left, size - width - left, top, size - height - top))
    return resized(images_NCHW, size)


def resized(images_NCHW: Tensor, size: int) -> Tensor:
    """Uint8 images at (``size``, ``size``), bilinear with antialiasing."""
    return torch.cat(
        [
            F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
            .round()
            .to(torch.uint8)
            for part in images_NCHW.split(4096)
        ]
    )


def channel_statistics(
    images_NCHW: Tensor, name: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images, pixels taken as [0, 1].

    Raises:
        DataError: a channel has the same value everywhere, so nothing can be scaled by it.
    """
    histogram_CV = torch.stack(
        [torch.bincount(channel.flatten(), minlength=256) for channel in images_NCHW.unbind(1)]
    ).double()
    values_V = torch.arange(256, dtype=torch.float64) / 255
    share_CV = histogram_CV / histogram_CV.sum(1, keepdim=True)
    mean_C = share_CV @ values_V
    std_C = (share_CV @ values_V.square() - mean_C.square()).clamp_min(0).sqrt()
    if bool((std_C < 1e-6).any()):
        channel = int((std_C < 1e-6).nonzero()[0])
        raise DataError(f"all training images of {name} have the same value in channel {channel}")
    return tuple(mean_C.tolist()), tuple(std_C.tolist())
