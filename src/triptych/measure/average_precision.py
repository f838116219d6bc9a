"""Average precision of detections, by COCO's official evaluation (pycocotools).

The numbers are those of COCOeval's summary: precision is averaged over 101 recall levels, ten
overlaps (IoU 0.50, 0.55, … 0.95) and the categories; at most 100 detections of an image count.
"""

from __future__ import annotations

import io
import math
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Kind = Literal["bbox", "segm"]
KINDS: tuple[Kind, ...] = ("bbox", "segm")


@dataclass(frozen=True)
class AveragePrecision:
    """The twelve official numbers, as fractions; NaN where the ground truth has no such object.

    Attributes:
        by_category: AP of each category by its COCO number, NaN where it has no object.
        AP: average over the ten overlaps.
        AP50: at an overlap of 0.50.
        AP75: at an overlap of 0.75.
        APs: of objects below 32² pixels.
        APm: of objects from 32² to 96² pixels.
        APl: of larger objects.
        AR1: recall with one detection for each image, averaged as AP is.
        AR10: with ten.
        AR100: with a hundred.
        ARs: AR100 of small objects.
        ARm: of middle-sized ones.
        ARl: of large ones.
    """

    by_category: dict[int, float]
    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float

    def numbers(self) -> dict[str, float]:
        """The official numbers that there are, by name."""
        values = asdict(self)
        del values["by_category"]
        return {name: value for name, value in values.items() if not math.isnan(value)}


def average_precision(
    annotations: dict[str, Any], detections: list[dict[str, Any]], kind: Kind
) -> AveragePrecision:
    """Evaluate ``detections`` against ``annotations``; neither is changed.

    Args:
        annotations: COCO's ground truth: images, annotations, categories. Crowds count neither as
            found nor as missed. Without an ``area`` an object has that of its box.
        detections: COCO's results: image_id, category_id, score, and bbox (left, top, width,
            height) or, for ``segm``, segmentation (compressed run lengths).
        kind: overlap of boxes or of masks. Sizes are the ground truth's ``area``, and for a
            detection the area of its box or its mask.

    Raises:
        ValueError: ``kind`` is unknown, a detection or an annotation lacks a key, or a detection
            has a score that is no number, or an image or a category that the ground truth has not.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind}")
    _check(annotations, detections, kind)
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _indexed(annotations, _truth(annotations["annotations"])),
            _indexed(annotations, _results(detections, kind)),
            kind,
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    twelve = [float("nan") if value < 0 else float(value) for value in evaluation.stats]
    return AveragePrecision(_by_category(evaluation), *twelve)


def _check(annotations: dict[str, Any], detections: list[dict[str, Any]], kind: Kind) -> None:
    needed = ("image_id", "category_id", "bbox" if kind == "bbox" else "segmentation")
    _check_keys(detections, (*needed, "score"), "detections")
    _check_keys(annotations["annotations"], (*needed, "bbox"), "annotations of the ground truth")
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in annotations[part]}
        strange = [item[key] for item in detections if item[key] not in known]
        if strange:
            raise ValueError(
                f"{len(strange)} of {len(detections)} detections have a {key} that is not among "
                f"the {len(known)} {part} of the ground truth; the first is {strange[0]}"
            )
    broken = sum(not math.isfinite(item["score"]) for item in detections)
    if broken:
        raise ValueError(f"{broken} of {len(detections)} detections have a score that is no number")


def _check_keys(items: list[dict[str, Any]], keys: tuple[str, ...], what: str) -> None:
    for key in keys:
        lacking = sum(key not in item for item in items)
        if lacking:
            raise ValueError(f"{lacking} of {len(items)} {what} have no {key}")


def _indexed(annotations: dict[str, Any], items: list[dict[str, Any]]) -> COCO:
    tool = COCO()
    tool.dataset = {key: annotations[key] for key in ("images", "categories")}
    tool.dataset["annotations"] = items
    tool.createIndex()
    return tool


def _truth(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies, because the tool writes into them, numbered from 1: it takes 0 for "no match"."""
    copies = []
    for number, item in enumerate(items, start=1):
        across, down = item["bbox"][2:]
        defaults = {"iscrowd": 0, "area": across * down}
        copies.append(defaults | item | {"id": number})
    return copies


def _results(items: list[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """Detections as the tool's own reader prepares them; that one fails on an empty list.

    For masks the area is the mask's, as the official submission without boxes has it.
    """
    prepared = []
    for number, item in enumerate(items, start=1):
        kept = {key: item[key] for key in ("image_id", "category_id", "score")}
        if kind == "bbox":
            across, down = item["bbox"][2:]
            kept |= {"bbox": list(item["bbox"]), "area": across * down}
        else:
            mask = item["segmentation"]
            kept |= {"segmentation": mask, "area": float(coco_mask.area(mask))}
        prepared.append(kept | {"id": number, "iscrowd": 0})
    return prepared


def _by_category(evaluation: COCOeval) -> dict[int, float]:
    """AP over all sizes with a hundred detections; axes: overlap, recall, category, size, most."""
    precision_TRK = evaluation.eval["precision"][:, :, :, 0, -1]
    found = {}
    for place, category in enumerate(evaluation.params.catIds):
        values = precision_TRK[:, :, place]
        there = values[values > -1]
        found[int(category)] = float(np.mean(there)) if there.size else float("nan")
    return found
