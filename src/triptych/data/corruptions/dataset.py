"""Corrupted test images, made when they are asked for, or once and kept.

Shapes: N images, B batch, C channels, S image size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from triptych.choices import Corruption
from triptych.data.corruptions import corrupt
from triptych.data.memory import InMemoryImages, RawImages
from triptych.data.samples import Batch, ImageDataset, SampleKey
from triptych.seeding import derive_seed

# Raise it when the code changes what a corruption does.
VERSION = 1
# Bytes of one set of corrupted images, up to which it is kept.
LARGEST_KEPT = 256 * 2**20
_CHUNK = 256


class CorruptedImages(ImageDataset):
    """The images of ``whole`` under one corruption, normalised as they were.

    What an image becomes is a function of its number in the data set, its pixels, the corruption
    and the severity: the same in every run, batch and process. ``whole`` must not augment.
    """

    def __init__(
        self,
        whole: ImageDataset,
        corruption: Corruption,
        severity: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.whole, self.labels = whole, whole.labels
        self.corruption, self.severity = corruption, severity
        self.mean, self.std = mean, std

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        batch = self.whole.__getitems__(keys)
        pixels = self.corrupted(as_bytes(batch.images, self.mean, self.std), batch.indices)
        return Batch(normalised(pixels, self.mean, self.std), batch.labels, batch.indices)

    def corrupted(self, pixels_BCSS: Tensor, indices_B: Tensor) -> Tensor:
        """Uint8 images as the corruption leaves them."""
        found = []
        for pixels, index in zip(pixels_BCSS, indices_B.tolist(), strict=True):
            seed = derive_seed("corruption", str(self.corruption), self.severity, index)
            image = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
            changed = corrupt(image, self.corruption, self.severity, np.random.default_rng(seed))
            found.append(torch.from_numpy(changed).permute(2, 0, 1))
        return torch.stack(found)


def as_bytes(images_BCSS: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The uint8 pixels of normalised images; exact, for pixels that were uint8."""
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = (images_BCSS * std_C11 + mean_C11) * 255
    return pixels.round().clamp(0, 255).to(torch.uint8)


def normalised(pixels_BCSS: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Float images as a model takes them."""
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (pixels_BCSS.float() / 255 - mean_C11) / std_C11


class CorruptionCache:
    """Corrupted sets of one data set as files in ``folder``, named after its pixels.

    A set that is larger than :data:`LARGEST_KEPT` is not kept, but made anew for every model: all
    75 of ImageNet would be 560 GB.
    """

    def __init__(
        self, folder: Path, images: ImageDataset, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.images, self.mean, self.std = images, mean, std
        size = images.__getitems__([SampleKey(0, 0)]).images.numel()
        self.pixels: Tensor | None = None
        if size * len(images) <= LARGEST_KEPT:
            batches = [images.__getitems__(keys) for keys in _keys(len(images))]
            self.pixels = torch.cat([as_bytes(batch.images, mean, std) for batch in batches])
            self.indices = torch.cat([batch.indices for batch in batches])
            hasher = blake2b(self.pixels.numpy().tobytes(), digest_size=8)
            hasher.update(self.indices.numpy().tobytes() + bytes([VERSION]))
            self.folder = folder / f"corrupted-{hasher.hexdigest()}"

    def images_of(self, corruption: Corruption, severity: int) -> ImageDataset:
        """The set of one corruption and severity."""
        live = CorruptedImages(self.images, corruption, severity, mean=self.mean, std=self.std)
        if self.pixels is None:
            return live
        path = self.folder / f"{corruption}-{severity}.npy"
        if not path.exists():
            parts = zip(self.pixels.split(_CHUNK), self.indices.split(_CHUNK), strict=True)
            made = torch.cat([live.corrupted(pixels, indices) for pixels, indices in parts])
            _write_whole(path, made.numpy())
        kept = torch.from_numpy(np.load(path))
        return InMemoryImages(RawImages(kept, self.images.labels), mean=self.mean, std=self.std)


def _keys(count: int) -> list[list[SampleKey]]:
    keys = [SampleKey(0, index) for index in range(count)]
    return [keys[start : start + _CHUNK] for start in range(0, count, _CHUNK)]


def _write_whole(path: Path, pixels: np.ndarray) -> None:
    """Two processes that make the same set write the same bytes: the last one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    with unfinished.open("wb") as file:
        np.save(file, pixels)
    unfinished.replace(path)
