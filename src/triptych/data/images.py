"""From the name of a data set to training and test images."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np

from triptych.data import sources
from triptych.data.archive_layouts import scan_archives
from triptych.data.augmentation import Augmentation
from triptych.data.errors import DataError
from triptych.data.folders import ImageFiles, ImageFolderDataset, scan_train_and_val
from triptych.data.memory import InMemoryImages, RawImages, channel_statistics
from triptych.data.samples import ImageData
from triptych.data.scenes import Scene, SceneSettings, compose_scene, scene_images
from triptych.data.splits import stratified_split, train_fraction

# Published statistics of ImageNet, and their average for grey images.
FILE_STATISTICS = {
    1: ((0.449,), (0.226,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class ImageSource(StrEnum):
    """The data sets that can be loaded by name."""

    mnist_5k = "mnist_5k"
    digits = "digits"
    fashion_mnist = "fashion_mnist"
    image_folder = "image_folder"
    image_archive = "image_archive"
    synthetic = "synthetic"
    scenes = "scenes"


@dataclass(frozen=True)
class ImageSpec:
    """Which images, how large, how split and how augmented.

    ``test_fraction`` counts only where the data set has no test images of its own (mnist_5k,
    digits, synthetic, scenes, an image folder without train/ and val/). ``train_fraction`` then
    keeps a part of the training images. Both are stratified and fixed: no seed moves them.
    ``expected``: classes, training and test images that files must come in, where given.
    """

    source: ImageSource
    image_size: int
    channels: int = 1
    root: Path | None = None
    download: bool = False
    train_fraction: float = 1.0
    test_fraction: float = 0.2
    augmentation: Augmentation = field(default_factory=Augmentation)
    synthetic_images: int = 256
    synthetic_classes: int = 10
    scenes: int = 5000
    scene_items: str = "mnist_5k"
    expected: tuple[int | None, int | None, int | None] = (None, None, None)


def load_images(spec: ImageSpec, *, seed: int) -> ImageData:
    """Load what ``spec`` names; ``seed`` counts for the augmentation alone.

    Images in memory are normalised by the mean and standard deviation of the training images as
    they enter the network; image files by the published statistics of ImageNet.

    Raises:
        DataError: the data set is missing or damaged.
        ValueError: the specification does not fit the data set.
    """
    if spec.source in (ImageSource.image_folder, ImageSource.image_archive):
        return _from_files(spec, seed)
    train, test, class_names = _from_memory(spec)
    if train.images.shape[1] != spec.channels:
        raise ValueError(
            f"images of {spec.source} have {train.images.shape[1]} channel(s), but "
            f"channels={spec.channels}"
        )
    train = train.resized(spec.image_size)
    mean, std = channel_statistics(train.images, spec.source)
    return ImageData(
        spec.source,
        InMemoryImages(train, mean=mean, std=std, augmentation=spec.augmentation, seed=seed),
        InMemoryImages(test.resized(spec.image_size), mean=mean, std=std),
        class_names,
        mean,
        std,
    )


def _from_memory(spec: ImageSpec) -> tuple[RawImages, RawImages, tuple[str, ...]]:
    class_names = sources.DIGITS
    if spec.source is ImageSource.scenes:
        train, test, class_names = _scenes(spec)
    elif spec.source is ImageSource.fashion_mnist:
        train, test = sources.fashion_mnist(spec.root, download=spec.download)
        class_names = sources.FASHION
    else:
        if spec.source is ImageSource.mnist_5k:
            whole = sources.mnist_5k()
        elif spec.source is ImageSource.digits:
            whole = sources.digits()
        else:
            whole = sources.synthetic(
                spec.synthetic_images,
                spec.image_size,
                channels=spec.channels,
                num_classes=spec.synthetic_classes,
                seed=0,
            )
            class_names = tuple(map(str, range(spec.synthetic_classes)))
        places, test_places = stratified_split(whole.labels, test_fraction=spec.test_fraction)
        train, test = whole.take(places), whole.take(test_places)
    if spec.train_fraction != 1:
        train = train.take(train_fraction(train.labels, spec.train_fraction))
    return train, test, class_names


def scene_items(spec: ImageSpec) -> tuple[RawImages, RawImages, tuple[str, ...]]:
    """What training and test scenes are composed of: no item is in both."""
    if spec.scene_items == ImageSource.fashion_mnist:
        return *sources.fashion_mnist(spec.root, download=spec.download), sources.FASHION
    digits = sources.mnist_5k()
    places, test_places = stratified_split(digits.labels, test_fraction=spec.test_fraction)
    return digits.take(places), digits.take(test_places), sources.DIGITS


def compose_scenes(spec: ImageSpec) -> tuple[list[Scene], list[Scene], tuple[str, ...]]:
    """Training and test scenes, and the names of their classes."""
    train, test, class_names = scene_items(spec)
    tests = round(spec.scenes * spec.test_fraction)
    settings = SceneSettings(spec.image_size)
    return (
        [compose_scene(train, "train", i, settings) for i in range(spec.scenes - tests)],
        [compose_scene(test, "test", i, settings) for i in range(tests)],
        class_names,
    )


def _scenes(spec: ImageSpec) -> tuple[RawImages, RawImages, tuple[str, ...]]:
    train, test, class_names = compose_scenes(spec)
    return scene_images(train), scene_images(test), class_names


def _check_counts(spec: ImageSpec, train: ImageFiles, test: ImageFiles | None) -> None:
    classes, trains, tests = spec.expected
    if test is None and tests is not None:
        raise DataError(
            f"{spec.root} has no val/ of its own, but {tests} test images were expected; give "
            f"train/ and val/"
        )
    found = (len(train.class_names), len(train.labels), len(test.labels) if test else 0)
    names = ("classes", "training images", "test images")
    for name, expected, count in zip(names, (classes, trains, tests), found, strict=True):
        if expected is not None and expected != count:
            raise DataError(f"{spec.root} has {count} {name}, but {expected} were expected")


def _from_files(spec: ImageSpec, seed: int) -> ImageData:
    if spec.channels not in FILE_STATISTICS:
        raise ValueError(f"image files give 1 or 3 channels, but channels={spec.channels}")
    if spec.root is None:
        raise ValueError(f"{spec.source} needs root, the folder of the training and test images")
    archive = spec.source is ImageSource.image_archive
    train, test = scan_archives(spec.root) if archive else scan_train_and_val(spec.root)
    _check_counts(spec, train, test)
    if test is None:
        places, test_places = stratified_split(
            np.array(train.labels), test_fraction=spec.test_fraction
        )
        train, test = train.take(places), train.take(test_places)
    if spec.train_fraction != 1:
        train = train.take(train_fraction(np.array(train.labels), spec.train_fraction))
    mean, std = FILE_STATISTICS[spec.channels]
    return ImageData(
        spec.source,
        ImageFolderDataset(
            train, spec.image_size, mean=mean, std=std, augmentation=spec.augmentation, seed=seed
        ),
        ImageFolderDataset(test, spec.image_size, mean=mean, std=std),
        train.class_names,
        mean,
        std,
    )
