"""Whether images with objects fit their folder, their canvas and their task."""

from __future__ import annotations

from collections.abc import Callable

from triptych.choices import DataName, TaskName
from triptych.config import ConfigError, RunConfig
from triptych.legality.sequences import refuse_changed

COCO_KEYS = ("short_side", "long_side", "training_sides", "annotations", "folders")
# There are no classes of images to keep a part of, and both splits are given.
NOT_COCO_KEYS = ("train_fraction", "test_fraction", "download", "scenes", "scene_items")
# Of augmentation, detection knows the flip and ``training_sides``.
IMAGE_KEYS = ("crop_padding", "random_resized_crop", "rand_augment", "color_jitter", "erasing")


def _detection_has_objects(config: RunConfig) -> None:
    data, task = config.data, config.task
    detects = task.name is TaskName.detection
    if detects and not data.name.holds_objects:
        legal = ", ".join(name for name in DataName if name.holds_objects)
        raise ConfigError(
            f"data={data.name} has no boxes, so that task=detection cannot be trained on it; "
            f"legal are {legal}."
        )
    if data.name is DataName.coco and not detects:
        raise ConfigError(
            f"task={task.name} cannot be used with data=coco, whose images have objects but no "
            "label of their own; use task=detection."
        )
    if data.name is DataName.coco and config.pretrain.name.trains:
        raise ConfigError(
            f"pretrain={config.pretrain.name} cannot be trained on data=coco, whose images differ "
            "in size; pre-train on other data and give the file with pretrain=checkpoint."
        )


def _keys_have_meaning(config: RunConfig) -> None:
    data = config.data
    coco = data.name is DataName.coco
    refuse_changed("data", data, NOT_COCO_KEYS if coco else COCO_KEYS, f"data={data.name}")
    if config.task.name is TaskName.detection:
        refuse_changed("data", data, IMAGE_KEYS, "task=detection")


def _coco_fits(config: RunConfig) -> None:
    data = config.data
    if data.name is not DataName.coco:
        return
    if not data.root:
        raise ConfigError(
            "data.root has no value; data=coco needs the folder that holds annotations/, "
            "train2017/ and val2017/, for example data.root=/data/coco."
        )
    if data.channels not in (1, 3):
        raise ConfigError(f"data.channels={data.channels} must be 1 or 3 for data=coco.")
    for key in ("annotations", "folders"):
        names = getattr(data, key)
        if len(names) != 2:
            raise ConfigError(
                f"data.{key}={list(names)} must be two names, that of training and that of testing."
            )
    if data.long_side > data.image_size:
        raise ConfigError(
            f"data.long_side={data.long_side} does not fit on a canvas of "
            f"data.image_size={data.image_size} pixels; give a canvas at least as large."
        )
    for key, sides in (("short_side", (data.short_side,)), ("training_sides", data.training_sides)):
        if any(side > data.long_side for side in sides):
            raise ConfigError(
                f"data.{key}={max(sides)} must be at most data.long_side={data.long_side}."
            )


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _detection_has_objects,
    _keys_have_meaning,
    _coco_fits,
)
