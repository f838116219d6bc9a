"""Whether what a probe or an examination is asked for can be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from triptych.choices import Corruption, DataName, Family, PretrainName, TaskName, VisualizeLevel
from triptych.config import ConfigError, RunConfig, TaskConfig
from triptych.legality import backbones, norms

# Whose keys they are: the tasks that read them.
OWNERS: dict[str, tuple[TaskName, ...]] = {
    "neighbours": (TaskName.knn,),
    "temperature": (TaskName.knn,),
    "regularization": (TaskName.linear_probe,),
    "corruptions": (TaskName.robustness,),
    "severities": (TaskName.robustness,),
    "test_sizes": (TaskName.resolution,),
    "test_images": tuple(name for name in TaskName if name.examines),
}
# Their weights belong to the one grid that they were built for, and there is no usual way to
# carry them to another.
ONE_GRID = (Family.levit, Family.pvt, Family.t2t_vit)


def _keys_have_meaning(config: RunConfig) -> None:
    task = config.task
    for key, owners in OWNERS.items():
        value, default = getattr(task, key), getattr(TaskConfig, key)
        if value != default and task.name not in owners:
            shown = list(value) if isinstance(value, tuple) else value
            raise ConfigError(
                f"task.{key}={shown} has no meaning for task={task.name}, only for "
                f"{', '.join(owners)}."
            )
    data = config.data
    if (data.name is DataName.imagenet_c) != (data.corrupted_root is not None):
        raise ConfigError(
            "data=imagenet_c needs data.corrupted_root, the folder of ImageNet-C with its folders "
            "<corruption>/<severity>/<class>, for example data.corrupted_root=/data/imagenet-c."
            if data.name is DataName.imagenet_c
            else f"data.corrupted_root={data.corrupted_root} has no meaning for data={data.name}; "
            "use data=imagenet_c."
        )


def _classifier_is_named_once(config: RunConfig) -> None:
    task, pre = config.task, config.pretrain
    if task.name.examines and task.checkpoint and pre.name is not PretrainName.none:
        raise ConfigError(
            f"task.checkpoint={task.checkpoint} and pretrain={pre.name} both say what the weights "
            "are; give one, with pretrain=none for the file."
        )


def _corruptions_exist(config: RunConfig) -> None:
    task = config.task
    for name in task.corruptions:
        if name not in list(Corruption):
            raise ConfigError(
                f"task.corruptions={list(task.corruptions)} names {name}, which is none of "
                f"{', '.join(Corruption)}."
            )
    for key in ("corruptions", "severities"):
        values = getattr(task, key)
        if len(set(values)) < len(values):
            raise ConfigError(f"task.{key}={list(values)} names one of them twice.")
    if not task.severities:
        raise ConfigError("task.severities=[] leaves nothing to ask; give some of [1, 2, 3, 4, 5].")


def _imagenet_c_fits(config: RunConfig) -> None:
    data, task = config.data, config.task
    if data.name is not DataName.imagenet_c:
        return
    if task.name is not TaskName.robustness:
        raise ConfigError(
            f"task={task.name} cannot be used with data=imagenet_c, whose images are for "
            "task=robustness; use data=image_folder for ImageNet itself."
        )
    if task.test_images is not None:
        raise ConfigError(
            f"task.test_images={task.test_images} has no meaning for data=imagenet_c, whose sets "
            "are read whole; leave it null."
        )
    if not data.root:
        raise ConfigError(
            "data.root has no value; data=imagenet_c needs the folder of ImageNet that holds "
            "val/, and train/ unless task.checkpoint is given."
        )


def _pictures_need_a_classifier(config: RunConfig) -> None:
    if config.task.name is TaskName.knn and config.visualize.level is VisualizeLevel.full:
        raise ConfigError(
            "visualize=full asks what a classifier predicts, and task=knn has none; use light or "
            "none."
        )


def _sizes_fit(config: RunConfig) -> None:
    task, bone = config.task, config.backbone
    if task.name is not TaskName.resolution:
        return
    if not task.test_sizes:
        raise ConfigError(
            "task.test_sizes=[] leaves nothing to ask; give image sizes, for example [24, 48]."
        )
    if bone.family in ONE_GRID:
        legal = [family for family in Family if not (family in ONE_GRID or family.reads_sequences)]
        raise ConfigError(
            f"task=resolution cannot be used with backbone={bone.name}: weights of family "
            f"{bone.family} belong to one token grid; legal are the families {', '.join(legal)}."
        )
    for size in task.test_sizes:
        other = replace(config, data=replace(config.data, image_size=size))
        try:
            for rule in (*backbones.RULES, *norms.RULES):
                rule(other)
        except ConfigError as error:
            raise ConfigError(
                f"task.test_sizes={list(task.test_sizes)} cannot hold {size}: {error}"
            ) from error


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _keys_have_meaning,
    _classifier_is_named_once,
    _corruptions_exist,
    _imagenet_c_fits,
    _pictures_need_a_classifier,
    _sizes_fit,
)
