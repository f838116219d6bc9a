"""The stages that train: pre-training, shared between runs, and the task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from triptych.config import RunConfig
from triptych.data.images import ImageData
from triptych.data.loading import ResumableLoader
from triptych.data.sequences import SequenceData
from triptych.detector_assembly import RunData
from triptych.fitting import (
    BACKBONE,
    CURVES,
    Surroundings,
    fit_stage,
    start_from_pretraining,
)
from triptych.loaders import test_loader
from triptych.measure.timing_lock import timing_lock
from triptych.mim import MaskedImageModel
from triptych.stages import Stage, pretrain_stage, task_stage
from triptych.tasks.classification import ClassificationModule
from triptych.tasks.fit import pick_device
from triptych.tasks.listops import ListOpsModule
from triptych.tasks.metric_log import read_rows
from triptych.tasks.progress import Progress

__all__ = [
    "BACKBONE",
    "CURVES",
    "WEIGHTS",
    "Surroundings",
    "evaluate",
    "pretrain",
    "run_stage",
    "save_weights",
    "start_from_pretraining",
    "test_loader",
    "train_task",
]

WEIGHTS = "weights.safetensors"


def run_stage(
    stage: Stage, make: Callable[[Path], dict[str, Any]], around: Surroundings
) -> dict[str, Any]:
    """Obtain a stage that trains; the curves of one that is done already are handed on."""
    if stage.done() is not None:
        around.sink(Progress(stage.kind, 1.0, "already done"))
        around.listen(read_rows(stage.folder / CURVES))
    # Timing takes this lock for itself, so nothing is timed while something trains.
    with timing_lock(
        exclusive=False, report=lambda line: around.sink(Progress(stage.kind, 0.0, line))
    ):
        return stage.obtain(make)


def pretrain(config: RunConfig, data: RunData, around: Surroundings) -> dict[str, Any] | None:
    """Pre-train, or find it done; None where the run trains nothing beforehand."""
    if not config.pretrain.name.trains or isinstance(data, SequenceData):
        return None

    def make(folder: Path) -> dict[str, Any]:
        module, fitted = fit_stage(config, data, "pretrain", folder, around)
        masked = module.model
        assert isinstance(masked, MaskedImageModel)
        save_weights(masked, folder / WEIGHTS)
        save_weights(masked.backbone, folder / BACKBONE)
        return {"seconds": fitted.seconds, "waited": fitted.waited}

    return run_stage(pretrain_stage(config), make, around)


def train_task(
    config: RunConfig, data: ImageData | SequenceData, around: Surroundings
) -> dict[str, Any]:
    """Fine-tune or train from scratch, and evaluate; the notes hold the test metrics."""

    def make(folder: Path) -> dict[str, Any]:
        module, fitted = fit_stage(config, data, "task", folder, around)
        assert isinstance(module, ClassificationModule | ListOpsModule)
        network, test = module.evaluated, test_loader(config, data.test)
        save_weights(network, folder / WEIGHTS)
        metrics = evaluate(network, test, pick_device(str(config.trainer.accelerator)))
        if isinstance(data, SequenceData):
            metrics["test/accuracy_commonest"] = data.commonest_share
        return {"seconds": fitted.seconds, "waited": fitted.waited, "metrics": metrics}

    return run_stage(task_stage(config), make, around)


def save_weights(model: nn.Module, path: Path) -> None:
    """Weights of ``model``, each tensor once, as safetensors; whole or not at all."""
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    names: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), name)
    kept = {name: tensors[name].contiguous() for name in names.values()}
    unfinished = path.with_suffix(".unfinished")
    save_file(kept, unfinished)
    unfinished.replace(path)


@torch.no_grad()
def evaluate(model: nn.Module, loader: ResumableLoader, device: torch.device) -> dict[str, float]:
    """Accuracy and cross-entropy over the test samples."""
    former = model.training
    model.eval().to(device)
    correct = correct5 = count = 0
    loss = 0.0
    loader.set_position(0)
    for images, labels, _indices in loader:
        logits = model(images.to(device))
        target = labels.to(device)
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        correct += int(top[:, 0].sum())
        correct5 += int(top.any(1).sum())
        loss += float(F.cross_entropy(logits, target, reduction="sum"))
        count += len(labels)
    model.train(former)
    metrics = {"test/accuracy": correct / count, "test/loss": loss / count}
    if logits.shape[1] > 5:
        metrics["test/accuracy_top5"] = correct5 / count
    return metrics
