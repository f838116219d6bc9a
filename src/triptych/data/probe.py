"""The probe set of a data set: images with objects on which all runs of a study are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.data.errors import DataError
from triptych.data.images import ImageSource, ImageSpec, scene_items
from triptych.data.samples import ImageData, SampleKey
from triptych.data.scenes import Scene, SceneSettings, compose_scene
from triptych.visualization.display import unnormalise
from triptych.visualization.object_tokens import object_tokens
from triptych.visualization.probe_set import (
    LEAST_OBJECTS,
    LEAST_TOKENS,
    ProbeSet,
    estimated_probe_set,
)

SPLIT = "probe"
# Objects must have three cells of an eighth of the image: so the same images can be asked of
# tokens of that size and of finer ones.
SELECTION_GRID = (8, 8)
# Scenes that may be looked at for one that is kept.
TRIES = 60


def probe_set(spec: ImageSpec, data: ImageData, count: int) -> ProbeSet:
    """``count`` images with objects, always the same for the same ``spec``.

    Of scenes, those of a split of their own, composed of test items; of other data, the first test
    images with masks that are guessed from the pixels, one object each.

    Raises:
        DataError: too few scenes have two objects that are large enough.
    """
    if spec.source is ImageSource.scenes:
        return scene_probe_set(spec, data, count)
    labels = data.test.labels[:count]
    keys = [SampleKey(0, index) for index in range(len(labels))]
    pixels = unnormalise(data.test.__getitems__(keys).images, data.mean, data.std)
    return estimated_probe_set(_as_bytes(pixels), data.mean, data.std, labels=labels)


def scene_probe_set(spec: ImageSpec, data: ImageData, count: int) -> ProbeSet:
    """Scenes of test items in which two objects or more are large enough; the others are dropped.

    Raises:
        DataError: fewer than ``count`` are found.
    """
    items, class_names = scene_items(spec)[1:]
    settings = SceneSettings(spec.image_size)
    images, instances, names, labels = [], [], [], []
    for index in range(TRIES * count):
        scene = compose_scene(items, SPLIT, index, settings)
        kept = _large_objects(scene)
        if len(kept) < LEAST_OBJECTS:
            continue
        images.append(scene.image)
        instances.append(_renumbered(scene.instances, kept))
        names.append(tuple(class_names[scene.classes[number]] for number in kept))
        labels.append(scene.label)
        if len(images) == count:
            break
    else:
        raise DataError(
            f"only {len(images)} of {TRIES * count} scenes of {spec.image_size} pixels have two "
            f"objects that are large enough; {count} are needed"
        )
    return ProbeSet(
        torch.stack(images),
        torch.stack(instances),
        tuple(names),
        torch.tensor(labels),
        data.mean,
        data.std,
    )


def _large_objects(scene: Scene) -> list[int]:
    """Objects that have three cells of the selection grid."""
    tokens = object_tokens(scene.masks, SELECTION_GRID)
    return [index for index, own in enumerate(tokens) if len(own) >= LEAST_TOKENS]


def _renumbered(instances: Tensor, kept: list[int]) -> Tensor:
    result = torch.zeros_like(instances)
    for number, index in enumerate(kept, start=1):
        result[instances == index + 1] = number
    return result


def _as_bytes(pixels: Tensor) -> Tensor:
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
