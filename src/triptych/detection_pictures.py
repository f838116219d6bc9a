"""Pictures of a detector: what it finds in the first test images, beside the truth."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from triptych.config import RunConfig
from triptych.data.detection import DetectionData
from triptych.data.samples import SampleKey
from triptych.detector_assembly import detection_samples
from triptych.tasks.detection import in_original
from triptych.visualization.figures.detections import Outlined, detections_figure
from triptych.visualization.picture import Picture

Row = dict[str, Any]
# Less confident detections are in the table, not in the picture.
DRAWN_ABOVE = 0.3


def shown_images(config: RunConfig, data: DetectionData) -> tuple[list[int], Tensor]:
    """Positions of the test images that pictures show, and they on the canvas, normalised."""
    places = list(range(min(config.visualize.images, len(data.test))))
    samples = detection_samples(config, data, training=False)
    return places, samples.__getitems__([SampleKey(0, place) for place in places]).images


@torch.no_grad()
def detection_picture(config: RunConfig, data: DetectionData, detector: nn.Module) -> Picture:
    """Boxes, classes, scores and masks beside the truth, in the images as they are."""
    places, images = shown_images(config, data)
    answers = cast(Any, detector.eval())(images)
    rows: list[Row] = []
    truth: list[list[Outlined]] = []
    found: list[list[Outlined]] = []
    pixels = []
    for place, answer in zip(places, answers, strict=True):
        image, objects = data.test[place]
        pixels.append(image.permute(1, 2, 0).numpy() / 255)
        known = {"boxes": objects.boxes, "labels": objects.labels}
        if len(objects.masks) == len(objects.boxes):  # some data have boxes alone
            known["masks"] = objects.masks
        placed = in_original(answer, data, place)
        truth.append(_outlined(known, data))
        found.append(_outlined(placed, data))
        for kind, what in (("truth", known), ("predicted", placed)):
            rows += _rows(data, place, kind, what)
    return Picture(
        "detections",
        "Objects found",
        f"Test images with their objects, and what the detector finds with a score of at least "
        f"{DRAWN_ABOVE}; one colour for each class. The table holds all that was found. Boxes are "
        "left, top, right, bottom in pixels.",
        detections_figure(pixels, truth, found, [f"image {place}" for place in places]),
        rows,
    )


def _outlined(what: dict[str, Tensor], data: DetectionData) -> list[Outlined]:
    objects = []
    for number, label in enumerate(what["labels"].tolist()):
        name, score = data.class_names[label - 1], what.get("scores")
        if score is not None and float(score[number]) < DRAWN_ABOVE:
            continue
        left, top, right, bottom = what["boxes"][number].tolist()
        mask = what["masks"][number].numpy() if "masks" in what else None
        text = name if score is None else f"{name} {float(score[number]):.2f}"
        objects.append(Outlined(label - 1, (left, top, right, bottom), text, mask))
    return objects


def _rows(data: DetectionData, place: int, kind: str, what: dict[str, Tensor]) -> list[Row]:
    rows = []
    for number, label in enumerate(what["labels"].tolist()):
        box = dict(
            zip(("left", "top", "right", "bottom"), what["boxes"][number].tolist(), strict=True)
        )
        score = float(what["scores"][number]) if "scores" in what else None
        mask = int(what["masks"][number].sum()) if "masks" in what else None
        name = data.class_names[label - 1]
        row: Row = {"image": place, "kind": kind, "class": name, "score": score}
        rows.append(row | box | {"mask_pixels": mask})
    return rows
