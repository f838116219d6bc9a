"""How a data set is asked for samples, and what it answers.

Shapes: B batch, C image channels, S image size in pixels, N samples of the data set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset


class SampleKey(NamedTuple):
    """One image as it is seen in one epoch; the epoch matters only for the augmentation."""

    epoch: int
    index: int  # type: ignore[assignment]


class Batch(NamedTuple):
    """Normalised float images (B, C, S, S), labels (B,) and data set indices (B,), both int64."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class ImageDataset(Dataset[Batch], ABC):
    """Labelled images; what a key gives is a pure function of (seed, epoch, index).

    ``labels`` is (N,) int64. No random number generator outside is read or moved on.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """The samples of ``keys``, in their order."""

    def __getitem__(self, key: SampleKey) -> Batch:
        """One sample, still with a batch dimension."""
        return self.__getitems__([key])


@dataclass(frozen=True)
class ImageData:
    """Training and test images of one data set, and how they were normalised.

    ``mean`` and ``std`` have one value for each channel, on a scale where a pixel is in [0, 1]:
    a pixel p came out as (p − mean) / std.
    """

    name: str
    train: ImageDataset
    test: ImageDataset
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return len(self.mean)
