"""The published images of ImageNet-C: ``root``/<corruption>/<severity>/<class>/*.JPEG.

They were cropped to 224 pixels before they were corrupted, so they are read as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from triptych.choices import Corruption
from triptych.data.archives import Member
from triptych.data.corruptions.dataset import normalised
from triptych.data.errors import DataError
from triptych.data.folders import ImageFiles, ImageFolderDataset, decode, scan_folder
from triptych.data.images import FILE_STATISTICS, ImageSpec
from triptych.data.samples import Batch, ImageData, ImageDataset, SampleKey

Name = tuple[Corruption, int]


@dataclass(frozen=True)
class ImageNetC:
    """The complete sets by corruption and severity, and a phrase on each of the others."""

    sets: dict[Name, ImageFiles]
    incomplete: tuple[str, ...]


class UnresizedImages(ImageDataset):
    """Image files of just ``size`` pixels to a side as normalised batches (B, C, S, S)."""

    def __init__(
        self, files: ImageFiles, size: int, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.files, self.size = files, size
        self.labels = torch.tensor(files.labels, dtype=torch.int64)
        self.mean, self.std = mean, std

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        indices_B = torch.tensor([index for _, index in keys], dtype=torch.int64)
        pixels = torch.stack([self._pixels(self.files.paths[index]) for _, index in keys])
        return Batch(normalised(pixels, self.mean, self.std), self.labels[indices_B], indices_B)

    def _pixels(self, path: Path | Member) -> Tensor:
        image = decode(path, len(self.mean))
        if image.size != (self.size, self.size):
            raise DataError(
                f"{path} has {image.width}x{image.height} pixels, but data.image_size={self.size}; "
                "images of ImageNet-C are not resized, so both must be the same"
            )
        return vision.pil_to_tensor(image)


def validation_images(spec: ImageSpec) -> ImageData:
    """The images of ``spec.root``/val alone, for a classifier that is not trained here.

    They stand for the training images too, which nothing asks for.

    Raises:
        DataError: the folder is missing, or a class has no image.
    """
    assert spec.root is not None, "checked with the configuration"
    files = scan_folder(spec.root / "val")
    mean, std = FILE_STATISTICS[spec.channels]
    images = ImageFolderDataset(files, spec.image_size, mean=mean, std=std)
    return ImageData(spec.source, images, images, files.class_names, mean, std)


def scan_imagenet_c(
    root: Path,
    class_names: Sequence[str],
    counts: Sequence[int],
    wanted: Sequence[Name],
) -> ImageNetC:
    """The sets of ``wanted`` that are whole, and what is missing of the others.

    Args:
        root: holds a folder for each corruption.
        class_names: names of the class folders, in the order of the labels.
        counts: images of each class that a whole set has: those of the validation set.
        wanted: corruptions and severities.

    Raises:
        DataError: there is no such folder, none of the sets is in it, or one has a class that is
            not in ``class_names``.
    """
    if not root.is_dir():
        raise DataError(
            f"there is no folder {root} with ImageNet-C's folders <corruption>/<severity>/<class>"
        )
    sets: dict[Name, ImageFiles] = {}
    incomplete = []
    for corruption, severity in wanted:
        folder = root / corruption / str(severity)
        if not folder.is_dir():
            incomplete.append(f"{corruption}/{severity} is missing")
            continue
        files = scan_folder(folder)
        fault = _fault(files, class_names, counts, folder)
        if fault:
            incomplete.append(f"{corruption}/{severity} has {fault}")
        else:
            sets[corruption, severity] = files
    if not sets:
        raise DataError(f"{root} holds none of the {len(wanted)} sets whole: {_listed(incomplete)}")
    return ImageNetC(sets, tuple(incomplete))


def _fault(
    files: ImageFiles, class_names: Sequence[str], counts: Sequence[int], folder: Path
) -> str:
    """What a set lacks, in words; empty where it is whole."""
    strange = sorted(set(files.class_names) - set(class_names))
    if strange:
        raise DataError(
            f"{folder} has a folder {strange[0]}, which is none of the {len(class_names)} classes "
            "of the validation set"
        )
    found = torch.tensor(files.labels).bincount(minlength=len(files.class_names)).tolist()
    held = dict(zip(files.class_names, found, strict=True))
    lacking = [name for name in class_names if name not in held]
    if lacking:
        return f"{len(held)} of {len(class_names)} classes (no {lacking[0]})"
    for name, count in zip(class_names, counts, strict=True):
        if held[name] != count:
            return f"{held[name]} of {count} images of class {name}"
    return ""


def _listed(phrases: Sequence[str]) -> str:
    rest = len(phrases) - 3
    return "; ".join(phrases[:3]) + (f"; and {rest} more" if rest > 0 else "")
