"""Tasks that examine a trained classifier, and which task is done by what.

The classifier is the one that ``task=classification`` trains with the same keys: it is trained
once for all examinations of it. Or it is read from ``task.checkpoint``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from triptych.assembly import build_model, load_data
from triptych.choices import DataName, TaskName
from triptych.config import ConfigError, RunConfig
from triptych.data.corruptions.dataset import CorruptionCache
from triptych.data.detection import DetectionData
from triptych.data.imagenet_c import UnresizedImages, scan_imagenet_c
from triptych.data.images import ImageData
from triptych.data.memory import InMemoryImages, RawImages, resized
from triptych.data.samples import ImageDataset
from triptych.data.sequences import SequenceData
from triptych.data.subset import LabelledPart
from triptych.detecting import train_detector
from triptych.detector_assembly import RunData
from triptych.probing import train_probe
from triptych.records import write_atomically
from triptych.stages import classifier_config, task_stage
from triptych.tasks.classifier_file import load_classifier
from triptych.tasks.fit import pick_device
from triptych.tasks.perturbation import perturbation_metrics, perturbation_rows
from triptych.tasks.progress import Progress
from triptych.tasks.robustness import (
    Name,
    Row,
    asked,
    error_rows,
    errors_of,
    imagenet_metrics,
    robustness_metrics,
)
from triptych.training import (
    CURVES,
    WEIGHTS,
    Surroundings,
    evaluate,
    run_stage,
    save_weights,
    test_loader,
    train_task,
)
from triptych.visualization.probe_set import occlusion_grid


@dataclass(frozen=True)
class Examination:
    """Metrics for the record, tables (name → rows) for its folder, and remarks for the reader."""

    metrics: dict[str, float]
    tables: dict[str, list[Row]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def run_task(config: RunConfig, data: RunData, around: Surroundings) -> dict[str, Any]:
    """Do the run's task, or find it done; the notes hold seconds, metrics and perhaps tables."""
    if isinstance(data, DetectionData):
        return train_detector(config, data, around)
    if isinstance(data, SequenceData):
        return train_task(config, data, around)
    if config.task.name.probes:
        return train_probe(config, data, around)
    if config.task.name.examines:
        return examine(config, data, around)
    return train_task(config, data, around)


def examine(config: RunConfig, data: ImageData, around: Surroundings) -> dict[str, Any]:
    """Examine a classifier on the test images."""
    _check(config, data)
    from_file = config.task.checkpoint is not None
    trained = None if from_file else train_task(classifier_config(config), data, around)

    def make(folder: Path) -> dict[str, Any]:
        started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        weights = _weights(config)
        model = build_model(config, data.num_classes)
        load_classifier(model, weights)
        save_weights(model, folder / WEIGHTS)
        write_atomically(folder / CURVES, "")
        if trained is not None:
            shutil.copyfile(weights.parent / CURVES, folder / CURVES)
        found = _EXAMINATIONS[config.task.name](config, data, model, around)
        device = pick_device(str(config.trainer.accelerator))
        plain = (
            evaluate(model, test_loader(config, data.test), device)
            if trained is None
            else trained["metrics"]
        )
        return {
            "seconds": 0.0 if trained is None else trained["seconds"],
            "metrics": plain | found.metrics,
            "tables": found.tables,
            "remarks": found.remarks,
            "seconds_examined": time.monotonic() - started,
        }

    return run_stage(task_stage(config), make, around)


def _check(config: RunConfig, data: ImageData) -> None:
    """Refuse, before anything is trained, what only the data can tell.

    Raises:
        ConfigError: too few test images are asked for, or they cannot be cut into cells.
    """
    examined_images(config, data)
    if config.task.name is TaskName.perturbation:
        try:
            occlusion_grid((config.data.image_size,) * 2)
        except ValueError as error:
            raise ConfigError(
                f"data.image_size={config.data.image_size} does not fit task=perturbation: {error}."
            ) from error


def _weights(config: RunConfig) -> Path:
    """The file with the weights of the classifier."""
    if config.task.checkpoint is not None:
        return Path(config.task.checkpoint)
    return task_stage(classifier_config(config)).folder / WEIGHTS


def _accuracy(config: RunConfig, model: nn.Module, images: ImageDataset) -> float:
    device = pick_device(str(config.trainer.accelerator))
    return evaluate(model, test_loader(config, images), device)["test/accuracy"]


def examined_images(config: RunConfig, data: ImageData) -> ImageDataset:
    """The test images, or the stratified part of them that ``task.test_images`` asks for.

    Raises:
        ConfigError: that is less than one image of each class.
    """
    count = config.task.test_images
    if count is None or count >= len(data.test):
        return data.test
    if count < data.num_classes:
        raise ConfigError(
            f"task.test_images={count} is less than one image for each of {data.num_classes} "
            f"classes; give {data.num_classes} or more."
        )
    return LabelledPart(data.test, count / len(data.test))


def _robustness(
    config: RunConfig, data: ImageData, model: nn.Module, around: Surroundings
) -> Examination:
    images = examined_images(config, data)
    accuracy = partial(_accuracy, config, model)
    clean = 1 - accuracy(images)
    wanted = asked(config.task.corruptions, config.task.severities)
    published = config.data.name is DataName.imagenet_c
    sets, remarks = _published(config, data, wanted) if published else (None, [])
    if sets is None:
        root = Path(config.output_dir) / "stages"
        cache = CorruptionCache(root, images, mean=data.mean, std=data.std)
        sets = {name: partial(cache.images_of, *name) for name in wanted}
    made: Iterator[tuple[Name, ImageDataset]] = ((name, make()) for name, make in sets.items())
    rows = error_rows(made, accuracy, count=len(sets), sink=around.sink)
    metrics = robustness_metrics(rows, clean, wanted)
    if published:
        own, why_not = imagenet_metrics(
            errors_of(rows), clean, num_classes=data.num_classes, images=len(images)
        )
        metrics, remarks = metrics | own, remarks + why_not
    return Examination(metrics, {"corruptions": rows}, remarks)


def _published(
    config: RunConfig, data: ImageData, wanted: list[Name]
) -> tuple[dict[Name, Callable[[], ImageDataset]], list[str]]:
    """ImageNet-C's sets in ``data.corrupted_root`` that are whole, and what the others lack."""
    counts = data.test.labels.bincount(minlength=data.num_classes).tolist()
    root = Path(str(config.data.corrupted_root))
    found = scan_imagenet_c(root, data.class_names, counts, wanted)
    size = config.data.image_size
    return {
        name: partial(UnresizedImages, files, size, mean=data.mean, std=data.std)
        for name, files in found.sets.items()
    }, [f"incomplete: {phrase}" for phrase in found.incomplete]


def _perturbation(
    config: RunConfig, data: ImageData, model: nn.Module, around: Surroundings
) -> Examination:
    around.sink(Progress("perturbation"))
    loader = test_loader(config, examined_images(config, data))
    loader.set_position(0)
    rows = perturbation_rows(
        model,
        loader,
        mean=data.mean,
        std=data.std,
        device=pick_device(str(config.trainer.accelerator)),
    )
    return Examination(perturbation_metrics(rows), {"perturbation": rows})


def _resolution(
    config: RunConfig, data: ImageData, model: nn.Module, around: Surroundings
) -> Examination:
    rows: list[Row] = []
    for size in sorted({config.data.image_size, *config.task.test_sizes}):
        around.sink(Progress("resolution", len(rows) / (1 + len(config.task.test_sizes))))
        sized = replace(config, data=replace(config.data, image_size=size))
        other = build_model(sized, data.num_classes)
        load_classifier(other, _weights(config))
        images = examined_images(config, replace(data, test=_images_at(sized, data, size)))
        rows.append({"size": size, "accuracy": _accuracy(config, other, images)})
    metrics = {f"resolution/accuracy/{row['size']}": row["accuracy"] for row in rows}
    return Examination(metrics, {"resolution": rows})


def _images_at(config: RunConfig, data: ImageData, size: int) -> ImageDataset:
    """The test images at ``size`` pixels: those in memory resized as they are, files read anew."""
    if isinstance(data.test, InMemoryImages):
        raw = RawImages(resized(data.test.images, size), data.test.labels)
        return InMemoryImages(raw, mean=data.mean, std=data.std)
    images = load_data(config)
    assert isinstance(images, ImageData)
    return images.test


_EXAMINATIONS = {
    TaskName.robustness: _robustness,
    TaskName.perturbation: _perturbation,
    TaskName.resolution: _resolution,
}
