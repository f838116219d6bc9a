"""Tasks that ask frozen features: linear probe and k-nearest neighbours.

Features of all training and test images, without augmentation, are a stage of their own: computed
once for a backbone and its pre-training, whatever the probe and the share of labels.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.assembly import build_model, load_data
from triptych.choices import TaskName
from triptych.config import DataConfig, RunConfig
from triptych.data.images import ImageData
from triptych.data.splits import train_fraction
from triptych.records import write_atomically
from triptych.stages import features_stage, task_stage
from triptych.tasks.features import Features, classifier_of, extract, scores
from triptych.tasks.fit import pick_device
from triptych.tasks.knn import knn_votes
from triptych.tasks.linear_probe import fit_linear_probe
from triptych.tasks.metric_log import MetricLog
from triptych.training import (
    CURVES,
    WEIGHTS,
    Surroundings,
    run_stage,
    save_weights,
    start_from_pretraining,
    test_loader,
)

FEATURES = "features.safetensors"
AUGMENTATION = (
    *("crop_padding", "flip", "random_resized_crop", "rand_augment", "color_jitter", "erasing"),
)


def train_probe(config: RunConfig, data: ImageData, around: Surroundings) -> dict[str, Any]:
    """Fit the probe on the labelled part of the features; the notes hold the test metrics."""
    if task_stage(config).done() is None:
        run_stage(features_stage(config), lambda folder: _extract(config, data, folder), around)

    def make(folder: Path) -> dict[str, Any]:
        started = time.monotonic()
        found = Features.load(features_stage(config).folder / FEATURES)
        if config.task.label_fraction < 1:
            places = train_fraction(found.train_labels.numpy(), config.task.label_fraction)
            found = found.labelled(torch.from_numpy(places))
        model = frozen_backbone(config, data.num_classes)
        metrics = _ask(config, found, model, data.num_classes)
        save_weights(model, folder / WEIGHTS)
        write_atomically(folder / CURVES, "")
        MetricLog(folder / CURVES, "task", (around.listen,)).append(0, 0, metrics)
        notes = features_stage(config).done() or {}
        seconds = time.monotonic() - started + notes["seconds"]
        return {"seconds": seconds, "metrics": metrics}

    return run_stage(task_stage(config), make, around)


def frozen_backbone(config: RunConfig, num_classes: int) -> nn.Module:
    """The backbone as its pre-training left it, or with its first weights."""
    model = build_model(config, num_classes)
    start_from_pretraining(config, model)
    return model


def _extract(config: RunConfig, data: ImageData, folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    model = frozen_backbone(config, data.num_classes)
    device = pick_device(str(config.trainer.accelerator))
    parts: list[Tensor] = []
    for images in (_plain_images(config).train, data.test):
        loader = test_loader(config, images)
        loader.set_position(0)
        parts += extract(model, loader, device)
    folder.mkdir(parents=True, exist_ok=True)
    Features(*parts).save(folder / FEATURES)
    return {"seconds": time.monotonic() - started, "channels": parts[0].shape[1]}


def _plain_images(config: RunConfig) -> ImageData:
    """The data of ``config`` without augmentation."""
    plain = {key: getattr(DataConfig, key) for key in AUGMENTATION}
    data = load_data(replace(config, data=replace(config.data, **plain)))
    assert isinstance(data, ImageData)
    return data


def _ask(
    config: RunConfig, found: Features, model: nn.Module, num_classes: int
) -> dict[str, float]:
    """The test metrics of the probe; ``model`` gets the layer that a linear probe fits."""
    task, device = config.task, pick_device(str(config.trainer.accelerator))
    labelled, labels = found.train.to(device), found.train_labels.to(device)
    if task.name is TaskName.knn:
        votes = knn_votes(
            labelled,
            labels,
            found.test.to(device),
            num_classes=num_classes,
            neighbours=task.neighbours,
            temperature=task.temperature,
        )
        return scores(votes.cpu(), found.test_labels, loss=False)
    layer = fit_linear_probe(
        labelled, labels, num_classes=num_classes, regularization=task.regularization
    )
    classifier_of(model).load_state_dict(layer.state_dict())
    return scores(layer.cpu()(found.test), found.test_labels)
