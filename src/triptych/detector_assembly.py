"""From a checked configuration to the detector of ``task=detection`` and its samples."""

from __future__ import annotations

import torch
from torch import nn

from triptych.assembly import load_data, load_detection
from triptych.choices import DetectorKind, TaskName
from triptych.config import RunConfig
from triptych.data.detection import DetectionData
from triptych.data.detection_samples import DetectionSamples
from triptych.data.images import ImageData
from triptych.data.sequences import SequenceData
from triptych.seeding import derive_seed
from triptych.tasks.detectors import build_detector

RunData = ImageData | SequenceData | DetectionData


def load_run_data(config: RunConfig) -> RunData:
    """What the run's task works on; pre-training looks at images, see ``load_data``."""
    detects = config.task.name is TaskName.detection
    return load_detection(config) if detects else load_data(config)


def put_detector(config: RunConfig, backbone: nn.Module, num_classes: int) -> nn.Module:
    """The detector around ``backbone``, its own parts initialised from the run's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "detector"))
        return build_detector(backbone, config.task.detector, num_classes)


def detection_samples(
    config: RunConfig, data: DetectionData, *, training: bool
) -> DetectionSamples:
    """Training or test images as batches, with masks where the detector learns from them."""
    return DetectionSamples(
        data,
        training=training,
        seed=derive_seed(config.seed, "augmentation"),
        masks=config.task.detector.kind is DetectorKind.mask_rcnn and training,
    )
