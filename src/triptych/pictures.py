"""The pictures of a run: what its networks see, of the first test images, with their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model
from torch import Tensor, nn

from triptych.assembly import build_masked_model, build_model, image_spec
from triptych.choices import TaskName, VisualizeLevel
from triptych.config import RunConfig
from triptych.data.detection import DetectionData
from triptych.data.images import ImageData
from triptych.data.probe import probe_set
from triptych.data.samples import SampleKey
from triptych.data.sequences import SequenceData
from triptych.detection_pictures import detection_picture, shown_images
from triptych.detector_assembly import RunData, put_detector
from triptych.examination_pictures import examination_pictures
from triptych.mim import restore_order, sample_noise
from triptych.stages import pretrain_stage, task_stage
from triptych.tasks.detectors import backbone_of
from triptych.tasks.dtn_callback import dtn_table
from triptych.tasks.metric_log import read_rows
from triptych.training import CURVES, WEIGHTS
from triptych.visualization import (
    Picture,
    gallery_metrics,
    reconstruction_gallery,
    save_pictures,
)
from triptych.visualization.capture import capture
from triptych.visualization.display import unnormalise
from triptych.visualization.dtn_gallery import dtn_gallery
from triptych.visualization.findings_gallery import FindingsGallery
from triptych.visualization.full_gallery import full_gallery
from triptych.visualization.gallery import brief_gallery, model_gallery

FOLDER = "pictures"
PICTURE_SEED = 0
# Pictures that ask which class a network predicts.
OF_A_CLASS = ("class_relevance",)


def make_pictures(
    config: RunConfig, data: RunData, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Write the pictures of a run and return their entries and numbers for the record.

    The same test images and the same masks in every run, so that cells can be compared. ``light``
    draws few and cheap pictures, at most 2 % of the shortest trainings of our studies; ``full``
    draws all. Of an encoder of sequences the pictures are those of what DTN learned.
    """
    if config.visualize.level is VisualizeLevel.off:
        return [], {}
    if isinstance(data, SequenceData):
        trained = build_model(config, data.num_classes)
        trained.load_state_dict(load_file(task_stage(config).folder / WEIGHTS))
        learned = dtn_gallery(trained, dtn_table(_curves(config)))
        return save_pictures(learned, folder / FOLDER), {}
    if isinstance(data, DetectionData):
        return save_pictures(_of_detector(config, data), folder / FOLDER), {}
    images = data.test.__getitems__([SampleKey(0, i) for i in spread(config, data)]).images
    model = build_model(config, data.num_classes)
    model.load_state_dict(load_file(task_stage(config).folder / WEIGHTS))
    captured, pixels = capture(model, images), unnormalise(images, data.mean, data.std)
    full = config.visualize.level is VisualizeLevel.full
    classes = config.task.name is not TaskName.knn  # has no logits to be relevant for
    if full:
        pictures = model_gallery(model, captured, images, pixels)
    else:
        pictures = brief_gallery(model, captured, images, pixels, classes=classes)
    if config.pretrain.name.trains:
        weights = pretrain_stage(config).folder / WEIGHTS
        pictures.insert(0, reconstruction(config, data, images, weights))
    if full:
        pictures += dtn_gallery(model, dtn_table(_curves(config)))
    pictures += examination_pictures(config, data)
    if not classes:
        pictures = [one for one in pictures if one.name not in OF_A_CLASS]
    numbers = gallery_metrics(captured)
    if full:
        found = _full(config, data, model)
        pictures += found.pictures
        numbers |= found.metrics
    return save_pictures(pictures, folder / FOLDER), numbers


def _of_detector(config: RunConfig, data: DetectionData) -> list[Picture]:
    """What it finds; what pre-training fills in; with ``full`` what DTN learned in its backbone."""
    detector = put_detector(config, build_model(config, data.num_classes), data.num_classes)
    detector.load_state_dict(load_file(task_stage(config).folder / WEIGHTS))
    pictures = [detection_picture(config, data, detector)]
    if config.pretrain.name.trains:
        _, images = shown_images(config, data)
        weights = pretrain_stage(config).folder / WEIGHTS
        pictures.append(reconstruction(config, data, images, weights))
    if config.visualize.level is VisualizeLevel.full:
        pictures += dtn_gallery(backbone_of(detector), dtn_table(_curves(config)))
    return pictures


def _full(config: RunConfig, data: ImageData, model: nn.Module) -> FindingsGallery:
    """What the probe set of the data says of ``model``, beside its own first weights."""
    probe = probe_set(image_spec(config), data, config.visualize.probe_images)
    return full_gallery(model, probe, build_model(config, data.num_classes))


def _curves(config: RunConfig) -> list[dict[str, Any]]:
    """The curves of the stages that this run trained or found trained, in their order."""
    stages = [pretrain_stage(config)] if config.pretrain.name.trains else []
    stages.append(task_stage(config))
    return [row for stage in stages for row in read_rows(stage.folder / CURVES)]


def spread(config: RunConfig, data: ImageData) -> list[int]:
    """Test images of different classes: the first of each class, in turn."""
    labels = data.test.labels.tolist()
    seen: dict[int, int] = {}
    ranked = []
    for index, label in enumerate(labels):
        ranked.append((seen.get(label, 0), label, index))
        seen[label] = seen.get(label, 0) + 1
    return [index for _, _, index in sorted(ranked)[: config.visualize.images]]


@torch.no_grad()
def reconstruction(
    config: RunConfig, data: ImageData | DetectionData, images: Tensor, weights: Path
) -> Picture:
    """What the masked image model in the file ``weights`` fills in; ``data`` trained it."""
    masked = build_masked_model(config, build_model(config, data.num_classes))
    load_model(masked, weights)
    masked.eval()
    rows, columns = masked.unit_grid
    noise = sample_noise(rows * columns, seed=PICTURE_SEED, epoch=0, indices=range(len(images)))
    mask = masked.hide(noise, config.pretrain.mask_ratio)
    predicted = masked.reconstruct(images, mask, masked.plan(mask), restore_order(noise))
    return reconstruction_gallery(
        images, mask.reshape(-1, rows, columns), predicted, mean=data.mean, std=data.std
    )
