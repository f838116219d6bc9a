"""Images of Pascal VOC with instance masks, chosen as for the grouping experiment.

The rules are those of the released code of arXiv 2210.07646 on VOC 2009: images that have both an
instance mask and an annotation; void (above 200) is background; object i of the annotation has
mask value i + 1; an object counts above 0.14² of the image, and an image with two that count.

Shapes: S side of the images in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image

from triptych.data.errors import DataError
from triptych.visualization.object_tokens import Parity
from triptych.visualization.probe_set import LEAST_OBJECTS, ProbeSet

FOLDERS = ("JPEGImages", "SegmentationObject", "Annotations")
_ENDINGS = {"JPEGImages": ".jpg", "SegmentationObject": ".png", "Annotations": ".xml"}
# Images with a mask and an annotation in trainval, per year.
EXPECTED = {"2009": 1499, "2012": 2913}
VOID = 200
LEAST_SIDE = 0.14
# Normalisation of the released model.
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class VocImage:
    """One image with the objects that count.

    Attributes:
        name: its number in the data set, such as ``2007_000032``.
        pixels: uint8 (3, S, S).
        instances: uint8 (S, S), 0 for background and o + 1 for object o.
        names: class names of the objects.
    """

    name: str
    pixels: torch.Tensor
    instances: torch.Tensor
    names: tuple[str, ...]


def voc_root(root: Path, year: str) -> Path:
    """The folder that holds the three folders: ``root`` itself, or VOCdevkit/VOC<year> below it.

    Raises:
        DataError: a folder is missing.
    """
    places = (root, root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}")
    for place in places:
        if all((place / name).is_dir() for name in FOLDERS):
            return place
    found = [name for name in FOLDERS if any((place / name).is_dir() for place in places)]
    raise DataError(
        f"{root} is no Pascal VOC {year}: of its {len(FOLDERS)} folders {', '.join(FOLDERS)} "
        f"{len(found)} were found; give the folder VOCdevkit/VOC{year} of the trainval archive"
    )


def voc_names(root: Path, year: str = "2009") -> list[str]:
    """Names of the images with a mask and an annotation, in alphabetical order.

    Raises:
        DataError: a folder is missing, or files are: the sentence gives counts.
    """
    if year not in EXPECTED:
        raise DataError(f"Pascal VOC {year} is not known; legal are {', '.join(EXPECTED)}")
    place = voc_root(root, year)
    stems = {
        name: {path.stem for path in (place / name).glob(f"*{_ENDINGS[name]}")} for name in FOLDERS
    }
    names = sorted(set.intersection(*stems.values()))
    if len(names) < EXPECTED[year]:
        counts = ", ".join(f"{len(stems[name])} in {name}" for name in FOLDERS)
        raise DataError(
            f"{place} has {len(names)} images with mask and annotation, but Pascal VOC {year} has "
            f"{EXPECTED[year]} ({counts}); unpack the trainval archive again"
        )
    return names


def voc_probe_set(
    root: Path,
    count: int,
    *,
    year: str = "2009",
    size: int = 224,
    parity: Parity = "corrected",
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> ProbeSet:
    """The first ``count`` images with two objects that count, in alphabetical order.

    The released code draws them in an order without a seed, so that no set is the published one.

    Raises:
        DataError: files are missing or damaged, or there are fewer such images.
    """
    place = voc_root(root, year)
    kept: list[VocImage] = []
    for name in voc_names(root, year):
        image = read_voc_image(place, name, size=size, parity=parity)
        if image is not None:
            kept.append(image)
        if len(kept) == count:
            return _as_probe_set(kept, mean, std)
    raise DataError(
        f"{place} has {len(kept)} images with two objects of more than {LEAST_SIDE}² of the image; "
        f"{count} were asked for"
    )


def read_voc_image(
    place: Path, name: str, *, size: int = 224, parity: Parity = "corrected"
) -> VocImage | None:
    """One image, or None where fewer than two of its objects count.

    Images are resized to a square whatever their shape: ``parity="published"`` bicubic, as PIL
    does by default, otherwise bilinear with antialiasing as single images are; masks by the
    nearest pixel. With "published" an image of one annotated object is left out even if its mask
    has more.

    Raises:
        DataError: a file is missing or damaged.
    """
    files = {folder: place / folder / f"{name}{_ENDINGS[folder]}" for folder in FOLDERS}
    annotated = _object_names(files["Annotations"])
    if parity == "published" and len(annotated) < LEAST_OBJECTS:
        return None
    method = Image.Resampling.BICUBIC if parity == "published" else Image.Resampling.BILINEAR
    pixels = _read(files["JPEGImages"], size, method, "RGB")
    ids = _read(files["SegmentationObject"], size, Image.Resampling.NEAREST, None)
    instances, names = objects_that_count(ids, annotated)
    if len(names) < LEAST_OBJECTS:
        return None
    return VocImage(
        name, torch.from_numpy(pixels).permute(2, 0, 1).clone(), torch.from_numpy(instances), names
    )


def objects_that_count(
    ids: np.ndarray, annotated: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Instances (S, S) numbered from 1, and the class names of those that are large enough.

    Args:
        ids: uint8 (S, S) mask values, void above 200.
        annotated: class names in the order of the annotation; those without a mask do not count.
    """
    ids = np.where(ids > VOID, 0, ids)
    least = LEAST_SIDE**2 * ids.size
    instances = np.zeros(ids.shape, dtype=np.uint8)
    names: list[str] = []
    for index, name in enumerate(annotated):
        mask = ids == index + 1
        if mask.sum() > least:
            names.append(name)
            instances[mask] = len(names)
    return instances, tuple(names)


def _object_names(path: Path) -> list[str]:
    try:
        tree = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path} cannot be read as an annotation: {error}") from error
    return [item.findtext("name", default="").strip() for item in tree.iter("object")]


def _read(path: Path, size: int, method: Image.Resampling, mode: str | None) -> np.ndarray:
    """An image file as a square array; palette images keep their numbers without a ``mode``."""
    try:
        with Image.open(path) as image:
            image.load()
            picture = image if mode is None else image.convert(mode)
            return np.array(picture.resize((size, size), method))
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _as_probe_set(
    images: Sequence[VocImage], mean: tuple[float, ...], std: tuple[float, ...]
) -> ProbeSet:
    return ProbeSet(
        torch.stack([image.pixels for image in images]),
        torch.stack([image.instances for image in images]),
        tuple(image.names for image in images),
        None,
        mean,
        std,
    )


def iterate_voc(root: Path, *, year: str = "2009", size: int = 224) -> Iterator[VocImage]:
    """All images with two objects that count, by the published rules, one after the other.

    Raises:
        DataError: files are missing or damaged.
    """
    place = voc_root(root, year)
    for name in voc_names(root, year):
        image = read_voc_image(place, name, size=size, parity="published")
        if image is not None:
            yield image
