"""Image files in one folder for each class, decoded when they are asked for.

Shapes: N samples, B batch, C image channels, S image size in pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from triptych.data.archives import Member
from triptych.data.augmentation import Augmentation, image_seed, photometric_transforms
from triptych.data.errors import DataError
from triptych.data.samples import Batch, ImageDataset, SampleKey
from triptych.data.splits import Indices
from triptych.seeding import forked_rng

# Share of the shorter side that a test crop shows: 224 of 256, as is usual for ImageNet.
_TEST_CROP = 224 / 256
MODES = {1: "L", 3: "RGB"}
_BICUBIC = vision.InterpolationMode.BICUBIC


@dataclass(frozen=True)
class ImageFiles:
    """Images with their labels; ``labels[i]`` counts in ``class_names``."""

    paths: Sequence[Path | Member]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    def take(self, indices: Indices) -> ImageFiles:
        """The files at ``indices``."""
        return ImageFiles(
            tuple(self.paths[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            self.class_names,
        )


def scan_folder(folder: Path) -> ImageFiles:
    """The images of ``folder``/<class>/…, classes and files in alphabetical order.

    Raises:
        DataError: the folder is missing, has no class folders, or a class has no image.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} with one folder of images for each class")
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        loose = sum(entry.suffix.lower() in IMG_EXTENSIONS for entry in folder.iterdir())
        lying = f" but {loose} images" if loose else ""
        raise DataError(f"{folder} has no class folders{lying}; expected one folder for each class")
    paths: list[Path] = []
    labels: list[int] = []
    for label, place in enumerate(classes):
        found = sorted(p for p in place.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
        if not found:
            raise DataError(
                f"{place} holds no images; expected at least 1 file ending in "
                f"{', '.join(IMG_EXTENSIONS)}"
            )
        paths += found
        labels += [label] * len(found)
    return ImageFiles(tuple(paths), tuple(labels), tuple(place.name for place in classes))


def scan_train_and_val(root: Path) -> tuple[ImageFiles, ImageFiles | None]:
    """The files of ``root``/train and ``root``/val, or of ``root`` alone (then None).

    Raises:
        DataError: only one of the two folders is there, or their classes differ.
    """
    there = [name for name in ("train", "val") if (root / name).is_dir()]
    if not there:
        return scan_folder(root), None
    if len(there) == 1:
        missing = "val" if there == ["train"] else "train"
        raise DataError(
            f"{root} has a folder {there[0]} but no folder {missing}; expected both, or one folder "
            f"for each class"
        )
    train, val = scan_folder(root / "train"), scan_folder(root / "val")
    if train.class_names != val.class_names:
        odd = sorted(set(train.class_names) ^ set(val.class_names))
        raise DataError(
            f"{root}/train has {len(train.class_names)} classes and {root}/val has "
            f"{len(val.class_names)}, and {odd[0]} is in only one of them"
        )
    return train, val


def decode(path: Path | Member, channels: int) -> Image.Image:
    """The image in ``path``, upright, as RGB (3 channels) or grey (1 channel).

    An EXIF orientation is applied; CMYK and palettes are converted; transparency is dropped;
    16-bit grey keeps its upper 8 bits.

    Raises:
        DataError: the file cannot be decoded, or is truncated.
    """
    try:
        with warnings.catch_warnings():
            # Broken metadata beside whole pixels is common in ImageNet and harmless.
            warnings.simplefilter("ignore")
            source = io.BytesIO(path.read()) if isinstance(path, Member) else path
            with Image.open(source) as opened:
                image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if "transparency" in image.info:
                image = image.convert("RGBA")
            return image.convert(MODES[channels])
    # Pillow's decoders raise many kinds of exception on damaged files.
    except Exception as error:
        raise DataError(f"{path} cannot be decoded as an image: {error}") from error


class ImageFolderDataset(ImageDataset):
    """Image files served as normalised batches (B, C, S, S), augmented where asked for.

    For testing, the shorter side is resized to 256/224 · S and the centre is taken.
    """

    def __init__(
        self,
        files: ImageFiles,
        size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.files = files
        self.labels = torch.tensor(files.labels, dtype=torch.int64)
        self.seed = seed
        self.channels = len(mean)
        self.transform = _transform(augmentation or Augmentation(), size, mean, std)

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        indices_B = torch.tensor([index for _, index in keys], dtype=torch.int64)
        images_BCSS = torch.stack([self._image(key) for key in keys])
        return Batch(images_BCSS, self.labels[indices_B], indices_B)

    def _image(self, key: SampleKey) -> Tensor:
        image = decode(self.files.paths[key[1]], self.channels)
        with forked_rng(image_seed(self.seed, SampleKey(*key))):
            return self.transform(image)


def _transform(
    augmentation: Augmentation, size: int, mean: Sequence[float], std: Sequence[float]
) -> v2.Transform:
    """The whole way from a PIL image to a normalised tensor (C, S, S)."""
    steps: list[v2.Transform] = []
    scale = augmentation.random_resized_crop
    if scale is not None:
        steps.append(v2.RandomResizedCrop(size, scale=scale, interpolation=_BICUBIC))
    else:
        steps.append(v2.Resize(round(size / _TEST_CROP), interpolation=_BICUBIC))
        steps.append(v2.CenterCrop(size))
    if augmentation.crop_padding:
        steps.append(v2.RandomCrop(size, padding=augmentation.crop_padding))
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip(augmentation.flip))
    steps += photometric_transforms(augmentation, mean, size)
    steps.append(v2.ToImage())
    steps.append(v2.ToDtype(torch.float32, scale=True))
    steps.append(v2.Normalize(list(mean), list(std)))
    if augmentation.erasing:
        steps.append(v2.RandomErasing(augmentation.erasing))
    steps.append(v2.ToPureTensor())
    return v2.Compose(steps)
