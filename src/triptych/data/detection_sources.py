"""From the name of a data set to training and test images with objects."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from triptych.data.canvas import ResizeRule
from triptych.data.coco import CocoPlaces, read_coco, with_objects
from triptych.data.detection import DetectionData, DetectionSplit
from triptych.data.errors import DataError
from triptych.data.images import FILE_STATISTICS, ImageSource, ImageSpec, compose_scenes
from triptych.data.memory import channel_statistics
from triptych.data.packed import Packed
from triptych.data.scenes import Scene, coco_annotations
from triptych.data.splits import train_fraction

_LOG = logging.getLogger("triptych.data")


@dataclass(frozen=True)
class CocoSpec:
    """A folder in COCO's layout, and how its images come to the network.

    At a short side of 800 and a long one of 1333 every image, whatever its shape, fits on a canvas
    of 1344 × 1344 (a multiple of 32 and, in patches of 4, of windows of 7). An image of the usual
    4 : 3 then covers 47 % of it: a step costs about twice as much as one whose canvas is fitted to
    each batch. ``expected``: categories, training and test images in the files, where given.
    """

    root: Path
    canvas: int = 1344
    resize: ResizeRule = field(default_factory=lambda: ResizeRule(800, 1333))
    flip: float = 0.5
    channels: int = 3
    places: CocoPlaces = field(default_factory=CocoPlaces)
    expected: tuple[int | None, int | None, int | None] = (None, None, None)


def load_coco(spec: CocoSpec) -> DetectionData:
    """Both splits of a folder in COCO's layout; training images without an object are left out.

    Of COCO 2017 117266 of 118287 training images have one. How many images and boxes are not
    trained on is said in one sentence through ``logging``.

    Raises:
        DataError: a file is missing, damaged or contradicts another.
        ValueError: the specification contradicts itself.
    """
    if spec.channels not in FILE_STATISTICS:
        raise ValueError(f"image files give 1 or 3 channels, but channels={spec.channels}")
    if spec.resize.long_side > spec.canvas:
        raise ValueError(
            f"a long side of {spec.resize.long_side} pixels does not fit on a canvas of "
            f"{spec.canvas}; give a canvas at least as large"
        )
    if not spec.root.is_dir():
        raise DataError(f"there is no folder {spec.root} with COCO's annotations and images")
    places, root = spec.places, spec.root
    train = read_coco(root / places.train_annotations, root / places.train_images, spec.channels)
    test = read_coco(root / places.test_annotations, root / places.test_images, spec.channels)
    _check_agreement(spec, train, test)
    seen = with_objects(train)
    _LOG.log(
        logging.WARNING if train.dropped else logging.INFO,
        "%s: not trained on are %d of %d images, which have no object, and %d boxes below a pixel",
        root / places.train_annotations,
        len(train) - len(seen),
        len(train),
        train.dropped,
    )
    mean, std = FILE_STATISTICS[spec.channels]
    return DetectionData(
        "coco",
        seen,
        test,
        mean,
        std,
        (spec.canvas, spec.canvas),
        spec.resize,
        spec.flip,
    )


def load_detection_scenes(spec: ImageSpec) -> DetectionData:
    """The very scenes that ``load_images`` gives for ``spec``, with all their objects.

    The canvas is the scene, so that nothing is resized; ``spec.augmentation.flip`` holds.
    """
    train, test, class_names = compose_scenes(spec)
    if spec.train_fraction != 1:
        labels = np.array([scene.label for scene in train])
        train = [train[place] for place in train_fraction(labels, spec.train_fraction)]
    images = torch.stack([scene.image for scene in train])
    mean, std = channel_statistics(images, spec.source)
    side = spec.image_size
    return DetectionData(
        str(ImageSource.scenes),
        scene_split(train, class_names),
        scene_split(test, class_names),
        mean,
        std,
        (side, side),
        ResizeRule(side, side),
        spec.augmentation.flip,
    )


def scene_split(scenes: list[Scene], class_names: tuple[str, ...]) -> DetectionSplit:
    """Scenes as a split; their COCO numbers are their places in the list."""
    found = coco_annotations(scenes, class_names)
    by_image: list[list[dict]] = [[] for _ in scenes]
    for item in found["annotations"]:
        by_image[item["image_id"]].append(item)
    return DetectionSplit(
        torch.stack([scene.image for scene in scenes]),
        found["images"],
        Packed(by_image),
        tuple(found["categories"]),
    )


def _check_agreement(spec: CocoSpec, train: DetectionSplit, test: DetectionSplit) -> None:
    named = [{item["id"]: item["name"] for item in split.categories} for split in (train, test)]
    if named[0] != named[1]:
        odd = sorted(set(named[0].items()) ^ set(named[1].items()))[0]
        raise DataError(
            f"the training annotations of {spec.root} have {len(named[0])} categories and the test "
            f"annotations {len(named[1])}; {odd[1]} (id {odd[0]}) is in only one of them"
        )
    found = (len(train.categories), len(train), len(test))
    names = ("categories", "training images", "test images")
    for name, expected, count in zip(names, spec.expected, found, strict=True):
        if expected is not None and expected != count:
            raise DataError(f"{spec.root} has {count} {name}, but {expected} were expected")
