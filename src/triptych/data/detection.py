"""Images with objects, in COCO's form, for detectors.

Shapes: N images, O objects of an image, C channels, h and w image size, H and W canvas in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from triptych.data.canvas import ResizeRule, boxes_to_original, masks_to_original
from triptych.data.errors import DataError
from triptych.data.object_masks import decode_mask

# Boxes below one pixel on a side are not trained on, as in the usual recipes.
SMALLEST_BOX = 1.0


class Objects(NamedTuple):
    """What is to be found in one image.

    Attributes:
        boxes: float32 (O, 4): left, top, right, bottom in pixels.
        labels: int64 (O,), 1 … K; 0 is the background.
        masks: bool (O, h, w), or (0, h, w) where there are none or none are asked for.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor


class Images(Protocol):
    """Images by position: uint8 (C, h, w)."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclass(frozen=True)
class DetectionSplit:
    """Original images with their objects: ``split[i]`` is the image, uint8 (C, h, w), and Objects.

    Crowds and boxes below one pixel are no objects here, but stay in ``annotations``, the ground
    truth of an evaluation.

    Attributes:
        images: the images by position.
        records: COCO's entry of each image.
        packed: COCO's annotations of each image, crowds with them.
        categories: COCO's categories; label k is category ``categories[k − 1]``.
        dropped: annotations that are no objects because they are smaller than a pixel.
    """

    images: Images
    records: Sequence[dict[str, Any]]
    packed: Sequence[list[dict[str, Any]]]
    categories: tuple[dict[str, Any], ...]
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Objects]:
        return self.images[index], self.objects(index, masks=self.has_masks(index))

    @cached_property
    def image_ids(self) -> tuple[int, ...]:
        """COCO's number of each image, by position."""
        return tuple(record["id"] for record in self.records)

    @property
    def annotations(self) -> dict[str, Any]:
        """COCO's ground truth of just these images: images, annotations and categories."""
        return {
            "images": list(self.records),
            "annotations": [item for items in self.packed for item in items],
            "categories": list(self.categories),
        }

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, without reading it."""
        record = self.records[index]
        return record["height"], record["width"]

    def has_masks(self, index: int) -> bool:
        """Whether every object of an image comes with its mask; some data have boxes alone."""
        return all(item.get("segmentation") for item in self.packed[index])

    def objects(self, index: int, *, masks: bool = True) -> Objects:
        """The objects of an image; ``masks=False`` leaves their masks out.

        Raises:
            DataError: an object has no mask, or one that cannot be decoded.
        """
        height, width = self.size(index)
        kept = [item for item in self.packed[index] if is_object(item, height, width)]
        label = {category["id"]: k for k, category in enumerate(self.categories, start=1)}
        boxes = [clipped_box(item["bbox"], height, width) for item in kept]
        found = [self._mask(item, height, width) for item in kept] if masks else []
        return Objects(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor([label[item["category_id"]] for item in kept], dtype=torch.int64),
            torch.stack(found) if found else torch.zeros(0, height, width, dtype=torch.bool),
        )

    def _mask(self, item: dict[str, Any], height: int, width: int) -> Tensor:
        if not item.get("segmentation"):
            raise DataError(
                f"annotation {item['id']} of image {item['image_id']} has no segmentation; a "
                f"detector that predicts masks needs one of every object"
            )
        try:
            return decode_mask(item["segmentation"], height, width)
        except DataError as error:
            raise DataError(
                f"annotation {item['id']} of image {item['image_id']} cannot be read: {error}"
            ) from error


@dataclass(frozen=True)
class DetectionData:
    """Training and test images with objects, and how they come to the network.

    ``mean`` and ``std`` have one value for each channel, on a scale where a pixel is in [0, 1].
    ``canvas`` is (H, W), see :mod:`triptych.data.canvas`; ``flip`` the probability with which a
    training image is flipped.
    """

    name: str
    train: DetectionSplit
    test: DetectionSplit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    canvas: tuple[int, int]
    resize: ResizeRule
    flip: float = 0.0

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(category["name"] for category in self.train.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO's number of label k is ``category_ids[k − 1]``."""
        return tuple(category["id"] for category in self.train.categories)

    @property
    def num_classes(self) -> int:
        """Without the background."""
        return len(self.train.categories)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def back_to_original(
        self,
        boxes_O4: Tensor,
        original: tuple[int, int],
        masks_OHW: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Boxes and masks on the canvas of a test image (h, w) in pixels of that image.

        Boxes are cut at the edges of the image. Bool masks stay bool, (O, h, w); probabilities are
        interpolated.
        """
        size = self.resize.size(*original)
        boxes_O4 = boxes_to_original(boxes_O4, original, size)
        if masks_OHW is None:
            return boxes_O4, None
        return boxes_O4, masks_to_original(masks_OHW, original, size)


def is_object(item: dict[str, Any], height: int, width: int) -> bool:
    """Whether an annotation is trained on: no crowd, and not :func:`too_small`."""
    return not item.get("iscrowd") and not too_small(item, height, width)


def too_small(item: dict[str, Any], height: int, width: int) -> bool:
    """Whether what lies inside the image of an annotation's box is below a pixel on a side."""
    left, top, right, bottom = clipped_box(item["bbox"], height, width)
    return right - left < SMALLEST_BOX or bottom - top < SMALLEST_BOX


def clipped_box(box: Sequence[float], height: int, width: int) -> tuple[float, ...]:
    """COCO's left, top, width, height as left, top, right, bottom inside the image."""
    left, top, across, down = box
    return (
        min(max(left, 0), width),
        min(max(top, 0), height),
        min(max(left + across, 0), width),
        min(max(top + down, 0), height),
    )
