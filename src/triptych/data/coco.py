"""Folders in COCO's layout: a JSON file of instance annotations and a folder of images.

Every sentence of refusal says how many entries are wrong, and names the first.

Shapes: C channels, h and w image size in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from triptych.data.detection import DetectionSplit, is_object, too_small
from triptych.data.errors import DataError
from triptych.data.folders import decode
from triptych.data.packed import Packed

_PARTS = ("images", "annotations", "categories")
_NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
# What is kept of an annotation: the rest (keypoints, captions) is of no use here.
_KEPT = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")


@dataclass(frozen=True)
class CocoPlaces:
    """Where the two splits lie, below one root."""

    train_annotations: str = "annotations/instances_train2017.json"
    train_images: str = "train2017"
    test_annotations: str = "annotations/instances_val2017.json"
    test_images: str = "val2017"


@dataclass(frozen=True)
class ImageFileReader:
    """Image files by position, decoded when they are asked for, uint8 (C, h, w)."""

    folder: Path
    records: Sequence[dict[str, Any]]
    channels: int

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor:
        record = self.records[index]
        path = self.folder / record["file_name"]
        image = decode(path, self.channels)
        found, expected = (image.height, image.width), (record["height"], record["width"])
        if found != expected:
            raise DataError(
                f"{path} is {found[0]} pixels high and {found[1]} wide, but its annotation says "
                f"{expected[0]} and {expected[1]}"
            )
        return vision.pil_to_tensor(image)


def read_coco(annotations: Path, images: Path, channels: int = 3) -> DetectionSplit:
    """All images of one annotation file, those without objects as well.

    Images come in the order of their numbers, categories too: so labels 1 … K are COCO's numbers
    with the gaps closed.

    Raises:
        DataError: the file or the folder is missing, the file is no instance annotation or
            contradicts itself, or an image that it names is absent.
    """
    if not images.is_dir():
        raise DataError(f"there is no folder {images}; it should hold the images of {annotations}")
    found = _read_json(annotations)
    _check_parts(annotations, found)
    _check_files(annotations, images, found["images"])
    records = sorted(found["images"], key=lambda record: record["id"])
    by_image: dict[Any, list[dict[str, Any]]] = {record["id"]: [] for record in records}
    for item in found["annotations"]:
        by_image[item["image_id"]].append({key: item[key] for key in _KEPT if key in item})
    dropped = sum(
        not item.get("iscrowd") and too_small(item, record["height"], record["width"])
        for record in records
        for item in by_image[record["id"]]
    )
    kept = Packed({key: record[key] for key in _NEEDED["images"]} for record in records)
    return DetectionSplit(
        ImageFileReader(images, kept, channels),
        kept,
        Packed(by_image[record["id"]] for record in records),
        tuple(sorted(found["categories"], key=lambda category: category["id"])),
        dropped,
    )


def with_objects(split: DetectionSplit) -> DetectionSplit:
    """The images of ``split`` that have an object; the others teach a detector nothing.

    Raises:
        DataError: none has.
    """
    places = [
        index
        for index, items in enumerate(split.packed)
        if any(is_object(item, *split.size(index)) for item in items)
    ]
    if not places:
        raise DataError(
            f"none of {len(split)} training images has an object of a pixel or more that is no "
            f"crowd; at least 1 is needed"
        )
    if len(places) == len(split):
        return split
    return DetectionSplit(
        _Chosen(split.images, torch.tensor(places)),
        Packed(split.records[place] for place in places),
        Packed(split.packed[place] for place in places),
        split.categories,
        split.dropped,
    )


@dataclass(frozen=True)
class _Chosen:
    """Some of the images, by position."""

    images: Any
    places: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[int(self.places[index])]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(
            f"there is no annotation file {path}; COCO's lie in annotations/ beside the folders of "
            f"images"
        )
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    lacking = [part for part in _PARTS if not isinstance(found, dict) or part not in found]
    if lacking:
        raise DataError(
            f"{path} lacks {', '.join(lacking)}; instance annotations have the {len(_PARTS)} lists "
            f"{', '.join(_PARTS)}"
        )
    return found


def _check_parts(path: Path, found: dict[str, Any]) -> None:
    for part, keys in _NEEDED.items():
        entries = found[part]
        incomplete = [entry for entry in entries if any(key not in entry for key in keys)]
        if incomplete:
            key = next(key for key in keys if key not in incomplete[0])
            _refuse(path, part, len(incomplete), len(entries), f"lack a key, the first {key}")
        numbers = {entry["id"] for entry in entries}
        if len(numbers) != len(entries):
            twice = len(entries) - len(numbers)
            _refuse(path, part, twice, len(entries), "have an id that another one has")
    for part, key in (("images", "image_id"), ("categories", "category_id")):
        known = {entry["id"] for entry in found[part]}
        strange = [item for item in found["annotations"] if item[key] not in known]
        if strange:
            what = f"have the {key} {strange[0][key]} (the first), which is not among the "
            what += f"{len(known)} {part}"
            _refuse(path, "annotations", len(strange), len(found["annotations"]), what)
    wrong = [item for item in found["annotations"] if not _is_box(item["bbox"])]
    if wrong:
        what = f"have a bbox that is not left, top, width, height; the first is {wrong[0]['bbox']}"
        _refuse(path, "annotations", len(wrong), len(found["annotations"]), what)


def _refuse(path: Path, part: str, wrong: int, total: int, what: str) -> None:
    raise DataError(f"{path}: {wrong} of {total} {part} {what}")


def _is_box(box: Any) -> bool:
    if not isinstance(box, Sequence) or len(box) != 4:
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in box)


def _check_files(path: Path, folder: Path, records: Iterable[dict[str, Any]]) -> None:
    there = {entry.name for entry in folder.iterdir()}
    names = [record["file_name"] for record in records]
    absent = [
        name
        for name in names
        if name not in there and ("/" not in name or not (folder / name).is_file())
    ]
    if absent:
        raise DataError(
            f"{folder} lacks {len(absent)} of the {len(names)} images in {path}; the first is "
            f"{absent[0]}"
        )
    if not names:
        raise DataError(f"{path} lists 0 images; at least 1 is needed")
