"""Detection: boxes, classes and masks of objects, by a detector around a backbone.

Shapes: B batch, C channels, H and W canvas, O objects, D detections.
"""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.distributed
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from triptych.data.detection import DetectionData
from triptych.data.detection_samples import DetectionBatch, Target
from triptych.data.object_masks import encode_mask
from triptych.measure.average_precision import Kind, average_precision
from triptych.tasks.classification import running_average
from triptych.tasks.detectors import backbone_of
from triptych.tasks.optimization import OptimizerSettings, build_optimizer

# Above it a pixel belongs to the object, as published.
MASK_THRESHOLD = 0.5
# The official numbers that a run reports, and their names there.
REPORTED = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "APs",
    "ap_medium": "APm",
    "ap_large": "APl",
}


class DetectionModule(pl.LightningModule):
    """The sum of a detector's losses; tested by average precision of boxes, and of masks if any.

    ``model`` is a detector of :func:`triptych.tasks.detectors.build_detector`. With ``ema_decay``
    > 0 the exponential moving average of the weights is what is evaluated and kept.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DetectionData,
        settings: OptimizerSettings,
        *,
        steps_per_epoch: int,
        ema_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.average = running_average(model, ema_decay) if ema_decay > 0 else None
        self.data = data
        self.found: list[dict[str, Any]] = []

    @property
    def evaluated(self) -> nn.Module:
        """The network whose precision counts."""
        return self.model if self.average is None else self.average.module

    def training_step(self, batch: DetectionBatch, _: int) -> Tensor:
        losses = self.model(batch.images, batch.targets)
        return torch.stack(list(losses.values())).sum()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def validation_step(self, batch: DetectionBatch, _: int) -> None:
        self.found += detections(self.evaluated, batch, self.data)

    def on_validation_epoch_end(self) -> None:
        found, self.found = _of_all_processes(self.found), []
        for name, value in precision_metrics(self.data, found, self.evaluated).items():
            self.log(name, value, on_epoch=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = build_optimizer(
            self.model, self.settings, self.steps_per_epoch, backbone=backbone_of(self.model)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def predicts_masks(detector: nn.Module) -> bool:
    """Whether it is a Mask R-CNN."""
    heads: Any = getattr(detector, "roi_heads", None)
    return heads is not None and bool(heads.has_mask())


def detections(
    detector: nn.Module, batch: DetectionBatch, data: DetectionData
) -> list[dict[str, Any]]:
    """What the detector, in evaluation mode, finds in test images, in COCO's result form."""
    found: list[dict[str, Any]] = []
    answers = cast(list[Target], detector(batch.images))
    for answer, index in zip(answers, batch.indices.tolist(), strict=True):
        placed = in_original(answer, data, index)
        found += _results(placed, data, data.test.image_ids[index])
    return found


def in_original(answer: Target, data: DetectionData, index: int) -> Target:
    """An answer of the detector in pixels of test image ``index``, on the CPU.

    Boxes are cut at the edges of the image, and those beside it left out; masks become bool
    (D, h, w), put into the cut boxes.
    """
    size = data.test.size(index)
    boxes, _ = data.back_to_original(answer["boxes"], size)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    placed = {key: value[kept] for key, value in (answer | {"boxes": boxes}).items()}
    if "masks" in placed:
        masks = paste_masks_in_image(placed["masks"], placed["boxes"], size)
        placed["masks"] = masks[:, 0] > MASK_THRESHOLD
    return {key: value.cpu() for key, value in placed.items()}


def _results(placed: Target, data: DetectionData, image_id: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    rows = zip(
        placed["boxes"].tolist(), placed["scores"].tolist(), placed["labels"].tolist(), strict=True
    )
    for number, ((left, top, right, bottom), score, label) in enumerate(rows):
        one: dict[str, Any] = {
            "image_id": image_id,
            "category_id": data.category_ids[label - 1],
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        if "masks" in placed:
            one["segmentation"] = encode_mask(placed["masks"][number])
        found.append(one)
    return found


def precision_metrics(
    data: DetectionData, found: list[dict[str, Any]], detector: nn.Module
) -> dict[str, float]:
    """``test/box_ap`` and its kin, and ``test/mask_ap`` … of a detector that predicts masks.

    Fractions; of objects of one size only where the test images have such.
    """
    kinds: dict[str, Kind] = {"box": "bbox"}
    if predicts_masks(detector):
        kinds["mask"] = "segm"
    metrics: dict[str, float] = {}
    annotations = data.test.annotations
    for word, kind in kinds.items():
        numbers = average_precision(annotations, found, kind).numbers()
        for name, official in REPORTED.items():
            if official in numbers:
                metrics[f"test/{word}_{name}"] = numbers[official]
    return metrics


def _of_all_processes(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not torch.distributed.is_initialized():
        return found
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, found)
    return [one for part in parts for one in part]
