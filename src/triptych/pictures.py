"""The pictures of a run: what its networks see, of the first test images, with their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model
from torch import Tensor

from triptych.assembly import build_masked_model, build_model
from triptych.choices import PretrainName, VisualizeLevel
from triptych.config import RunConfig
from triptych.data.images import ImageData
from triptych.data.samples import SampleKey
from triptych.mim import mask_from_noise, restore_order, sample_noise
from triptych.stages import pretrain_stage, task_stage
from triptych.training import WEIGHTS
from triptych.visualization import (
    Picture,
    gallery_metrics,
    reconstruction_gallery,
    save_pictures,
)
from triptych.visualization.capture import capture
from triptych.visualization.display import unnormalise
from triptych.visualization.gallery import captured_gallery

FOLDER = "pictures"
PICTURE_SEED = 0


def make_pictures(
    config: RunConfig, data: ImageData, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Write the pictures of a run and return their entries and numbers for the record.

    The same test images and the same masks in every run, so that cells can be compared.
    """
    if config.visualize.level is VisualizeLevel.off:
        return [], {}
    images = data.test.__getitems__([SampleKey(0, i) for i in _spread(config, data)]).images
    model = build_model(config, data.num_classes)
    model.load_state_dict(load_file(task_stage(config).folder / WEIGHTS))
    captured = capture(model, images)
    pictures = captured_gallery(captured, unnormalise(images, data.mean, data.std))
    if config.pretrain.name is not PretrainName.none:
        pictures.insert(0, _reconstruction(config, data, images))
    entries = save_pictures(pictures, folder / FOLDER)
    return entries, gallery_metrics(captured)


def _spread(config: RunConfig, data: ImageData) -> list[int]:
    """Test images of different classes: the first of each class, in turn."""
    labels = data.test.labels.tolist()
    seen: dict[int, int] = {}
    ranked = []
    for index, label in enumerate(labels):
        ranked.append((seen.get(label, 0), label, index))
        seen[label] = seen.get(label, 0) + 1
    return [index for _, _, index in sorted(ranked)[: config.visualize.images]]


@torch.no_grad()
def _reconstruction(config: RunConfig, data: ImageData, images: Tensor) -> Picture:
    masked = build_masked_model(config, build_model(config, data.num_classes))
    load_model(masked, pretrain_stage(config).folder / WEIGHTS)
    masked.eval()
    rows, columns = masked.unit_grid
    noise = sample_noise(rows * columns, seed=PICTURE_SEED, epoch=0, indices=range(len(images)))
    mask = mask_from_noise(noise, config.pretrain.mask_ratio)
    predicted = masked.reconstruct(images, mask, masked.plan(mask), restore_order(noise))
    return reconstruction_gallery(
        images, mask.reshape(-1, rows, columns), predicted, mean=data.mean, std=data.std
    )
