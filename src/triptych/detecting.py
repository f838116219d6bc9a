"""The stage of ``task=detection``: train a detector, and test it by average precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych.config import RunConfig
from triptych.data.detection import DetectionData
from triptych.data.loading import ResumableLoader
from triptych.detector_assembly import detection_samples
from triptych.fitting import Surroundings, fit_stage
from triptych.loaders import test_loader
from triptych.stages import task_stage
from triptych.tasks.detection import DetectionModule, detections, precision_metrics
from triptych.tasks.fit import pick_device
from triptych.training import WEIGHTS, run_stage, save_weights


def train_detector(config: RunConfig, data: DetectionData, around: Surroundings) -> dict[str, Any]:
    """Train and test, or find it done; the notes hold seconds and metrics."""

    def make(folder: Path) -> dict[str, Any]:
        module, fitted = fit_stage(config, data, "task", folder, around)
        assert isinstance(module, DetectionModule)
        detector = module.evaluated
        save_weights(detector, folder / WEIGHTS)
        test = test_loader(config, detection_samples(config, data, training=False))
        device = pick_device(str(config.trainer.accelerator))
        metrics = evaluate_detector(detector, test, data, device)
        return {"seconds": fitted.seconds, "waited": fitted.waited, "metrics": metrics}

    return run_stage(task_stage(config), make, around)


@torch.no_grad()
def evaluate_detector(
    detector: nn.Module, loader: ResumableLoader, data: DetectionData, device: torch.device
) -> dict[str, float]:
    """Average precision over the test images, as :func:`precision_metrics` names it."""
    former = detector.training
    detector.eval().to(device)
    loader.set_position(0)
    found: list[dict[str, Any]] = []
    for batch in loader:
        found += detections(detector, batch._replace(images=batch.images.to(device)), data)
    detector.train(former)
    return precision_metrics(data, found, detector)
