"""The stage of ``task=detection``: train a detector, and test it by average precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from triptych.assembly import build_model
from triptych.config import RunConfig
from triptych.data.detection import DetectionData
from triptych.data.loading import ResumableLoader
from triptych.detector_assembly import detection_samples, put_detector
from triptych.fitting import Surroundings, fit_stage
from triptych.loaders import test_loader
from triptych.records import read_json, write_json
from triptych.stages import task_stage
from triptych.tasks.detection import DetectionModule, detections, precision_metrics
from triptych.tasks.fit import pick_device
from triptych.tasks.progress import Progress
from triptych.training import WEIGHTS, run_stage, save_weights

TRAINED = "trained.json"


def train_detector(config: RunConfig, data: DetectionData, around: Surroundings) -> dict[str, Any]:
    """Train and test, or find it done; the notes hold seconds and metrics."""

    def make(folder: Path) -> dict[str, Any]:
        detector, notes = _trained(config, data, folder, around)
        test = test_loader(config, detection_samples(config, data, training=False))
        around.sink(Progress("test"))
        device = pick_device(str(config.trainer.accelerator))
        return notes | {"metrics": evaluate_detector(detector, test, data, device)}

    return run_stage(task_stage(config), make, around)


def _trained(
    config: RunConfig, data: DetectionData, folder: Path, around: Surroundings
) -> tuple[nn.Module, dict[str, Any]]:
    """The detector and what its training took.

    Testing takes minutes on COCO: a process stopped meanwhile has the training behind it.
    """
    note = folder / TRAINED
    if note.exists():
        detector = put_detector(config, build_model(config, data.num_classes), data.num_classes)
        detector.load_state_dict(load_file(folder / WEIGHTS))
        return detector, read_json(note)
    module, fitted = fit_stage(config, data, "task", folder, around)
    assert isinstance(module, DetectionModule)
    save_weights(module.evaluated, folder / WEIGHTS)
    notes = {"seconds": fitted.seconds, "waited": fitted.waited}
    write_json(note, notes)
    return module.evaluated, notes


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
