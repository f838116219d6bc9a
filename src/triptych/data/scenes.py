"""Scenes: several real digits or clothes on one canvas, with masks, boxes and class names.

An embedded stand-in for data with objects: what an image shows is known to the pixel, and nothing
is downloaded. Scene i of a split is a function of (split, i) and of the items alone.

Shapes: N scenes, S canvas size in pixels, O objects of a scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.data.memory import RawImages
from triptych.seeding import derive_seed

# Fainter pixels of an item are its background.
INK = 25
TRIES = 20
SMALLEST = 4


@dataclass(frozen=True)
class SceneSettings:
    """How scenes are composed.

    Attributes:
        size: canvas (S, S) in pixels.
        objects: fewest and most objects.
        main: least and largest side of the main object, the first, as a share of the canvas.
        scale: the same of the others; it ends below ``main``.
        overlap: largest share of the smaller box that another box may cover.
        clutter: brightest background, 0 to 255; it is smooth noise.
    """

    size: int = 64
    objects: tuple[int, int] = (2, 4)
    main: tuple[float, float] = (0.5, 0.7)
    scale: tuple[float, float] = (0.25, 0.4)
    overlap: float = 0.15
    clutter: int = 60

    def __post_init__(self) -> None:
        fewest, most = self.objects
        smallest, largest = self.scale
        if not 1 <= fewest <= most <= 254:
            raise ValueError(f"a scene needs 1 to 254 objects, got {self.objects}")
        if not 0 < smallest <= largest <= 1:
            raise ValueError(f"the scale must rise within (0, 1], got {self.scale}")
        if not largest < self.main[0] <= self.main[1] <= 1:
            raise ValueError(
                f"the main object's scale must rise within (0, 1] above the others' {largest}, "
                f"got {self.main}"
            )
        if round(self.size * smallest) < SMALLEST:
            raise ValueError(f"items of {smallest} of {self.size} pixels are too small to be seen")


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        image: uint8 (1, S, S).
        instances: uint8 (S, S), 0 for background and o + 1 for object o; later objects lie above.
        classes: (O,) class of each object.
    """

    image: Tensor
    instances: Tensor
    classes: tuple[int, ...]

    @property
    def masks(self) -> Tensor:
        """bool (O, S, S), what is seen of each object."""
        numbers = torch.arange(1, len(self.classes) + 1, dtype=torch.uint8)
        return self.instances == numbers[:, None, None]

    @property
    def boxes(self) -> Tensor:
        """int64 (O, 4): left, top, right, bottom in pixels, right and bottom exclusive."""
        found = []
        for mask in self.masks:
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            found.append(torch.stack([torch.as_tensor(edge) for edge in edges]))
        return torch.stack(found)

    @property
    def label(self) -> int:
        """Class of the main object, which is the first and the largest."""
        return self.classes[0]


def compose_scene(
    items: RawImages, split: str, index: int, settings: SceneSettings | None = None
) -> Scene:
    """Scene ``index`` of ``split`` from ``items`` of one channel.

    An object for which no free place is found in 20 tries is left out, or made smaller until there
    is one where the scene would have too few.

    Raises:
        ValueError: the items have more than one channel.
    """
    settings = settings or SceneSettings()
    if items.images.shape[1] != 1:
        raise ValueError(f"scenes are composed of grey items, got {items.images.shape[1]} channels")
    random = np.random.default_rng(derive_seed("scene", split, index))
    image = _clutter(settings, random)
    instances = torch.zeros(settings.size, settings.size, dtype=torch.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    classes: list[int] = []
    for number in range(random.integers(settings.objects[0], settings.objects[1] + 1)):
        choice = int(random.integers(len(items.labels)))
        scale = settings.scale if number else settings.main
        side = round(settings.size * random.uniform(*scale))
        ink = _cut_out(items.images[choice, 0], side)
        place = _free_place(ink.shape, boxes, settings, random)
        while place is None and number < settings.objects[0] and side > SMALLEST:
            side = max(SMALLEST, round(side * 0.8))
            ink = _cut_out(items.images[choice, 0], side)
            place = _free_place(ink.shape, boxes, settings, random)
        if place is None:
            continue
        boxes.append(place)
        classes.append(int(items.labels[choice]))
        top, left, bottom, right = place
        seen = ink > INK
        image[top:bottom, left:right][seen] = ink[seen]
        instances[top:bottom, left:right][seen] = len(classes)
    return Scene(image[None], instances, tuple(classes))


def scene_images(scenes: list[Scene]) -> RawImages:
    """Scenes as classified images; the label is :attr:`Scene.label`."""
    images = torch.stack([scene.image for scene in scenes])
    return RawImages(images, torch.tensor([scene.label for scene in scenes]))


def coco_annotations(scenes: list[Scene], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Scenes in COCO's instance form; categories count from 1, masks are uncompressed RLE."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        height, width = scene.instances.shape
        name = f"{number:06d}.png"
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for mask, box, label in zip(scene.masks, scene.boxes.tolist(), scene.classes, strict=True):
            left, top, right, bottom = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": run_lengths(mask),
                }
            )
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def run_lengths(mask: Tensor) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths of a mask (H, W): column by column, zeros first."""
    flat = np.asfortranarray(mask.numpy()).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], edges, [len(flat)]))).tolist()
    counts = [0, *runs] if len(flat) and flat[0] else runs
    return {"size": list(mask.shape), "counts": counts}


def _clutter(settings: SceneSettings, random: np.random.Generator) -> Tensor:
    coarse = torch.from_numpy(random.uniform(0, settings.clutter, (1, 1, 5, 5)))
    fine = F.interpolate(coarse, (settings.size,) * 2, mode="bilinear", align_corners=True)
    return fine[0, 0].round().to(torch.uint8)


def _cut_out(item_HW: Tensor, side: int) -> Tensor:
    """The item's own box, resized so that its longer edge has ``side`` pixels."""
    ink = item_HW > INK
    if not bool(ink.any()):
        raise ValueError(f"an item without a pixel brighter than {INK} cannot be placed in a scene")
    rows, columns = ink.any(1).nonzero()[:, 0], ink.any(0).nonzero()[:, 0]
    box = item_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float()
    longer = max(box.shape)
    shape = [max(1, round(edge * side / longer)) for edge in box.shape]
    sized = F.interpolate(box[None, None], shape, mode="bilinear", antialias=True)
    return sized[0, 0].round().clamp(0, 255).to(torch.uint8)


def _free_place(
    shape: torch.Size,
    taken: list[tuple[int, int, int, int]],
    settings: SceneSettings,
    random: np.random.Generator,
) -> tuple[int, int, int, int] | None:
    """Top, left, bottom, right of a box that covers little of the others; None if none is found."""
    for _ in range(TRIES):
        top = int(random.integers(settings.size - shape[0] + 1))
        left = int(random.integers(settings.size - shape[1] + 1))
        place = (top, left, top + shape[0], left + shape[1])
        if all(_overlap(place, other) <= settings.overlap for other in taken):
            return place
    return None


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Shared area as a share of the smaller box."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return height * width / min(areas)
