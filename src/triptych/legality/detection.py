"""Whether a detector can stand on a backbone, and its keys have a meaning."""

from __future__ import annotations

from collections.abc import Callable

from triptych.choices import DetectorKind, Family, Strategy, TaskName
from triptych.config import ConfigError, RunConfig, TaskConfig
from triptych.config_detector import PLAIN_DETECTOR
from triptych.legality.geometry import ONE_STAGE, total_stride

# What belongs to the labels of whole images.
OF_LABELS = ("label_smoothing", "mixup", "cutmix", "label_fraction")
# Group normalisation takes channels in so many groups, or a quarter of narrow ones.
GROUPS = 32


def _keys_have_meaning(config: RunConfig) -> None:
    task = config.task
    if task.name is not TaskName.detection:
        for key, value in vars(task.detector).items():
            if value != getattr(PLAIN_DETECTOR, key):
                shown = list(value) if isinstance(value, tuple) else value
                raise ConfigError(
                    f"task.detector.{key}={shown} has no meaning for task={task.name}, only for "
                    "detection."
                )
        return
    for key in OF_LABELS:
        value, default = getattr(task, key), getattr(TaskConfig, key)
        if value != default:
            raise ConfigError(
                f"task.{key}={value:g} has no meaning for task=detection; leave it {default:g}."
            )


def _maps_exist(config: RunConfig) -> None:
    bone, finest = config.backbone, config.task.detector.finest_stride
    if config.task.name is not TaskName.detection or bone.family is Family.timm:
        return
    coarsest = total_stride(bone) * (2 if bone.family in ONE_STAGE else 1)
    if finest > coarsest:
        raise ConfigError(
            f"task.detector.finest_stride={finest} leaves no feature map of backbone={bone.name}, "
            f"whose coarsest has a stride of {coarsest}; give that or less."
        )
    if config.data.image_size % coarsest:
        low = max(coarsest, config.data.image_size // coarsest * coarsest)
        raise ConfigError(
            f"data.image_size={config.data.image_size} is not a multiple of {coarsest}, the stride "
            f"of the coarsest feature map of backbone={bone.name}; the nearest legal sizes are "
            f"{low} and {low + coarsest}."
        )


def _detector_fits(config: RunConfig) -> None:
    detector = config.task.detector
    if config.task.name is not TaskName.detection:
        return
    if not detector.aspect_ratios:
        raise ConfigError(
            "task.detector.aspect_ratios=[] leaves no anchor; give some, for example [0.5,1,2]."
        )
    grouped = detector.head_norm and detector.kind is DetectorKind.retinanet
    groups = max(1, min(GROUPS, detector.channels // 4))
    if grouped and detector.channels % groups:
        low = detector.channels // groups * groups
        raise ConfigError(
            f"task.detector.channels={detector.channels} does not come apart into {groups} groups "
            f"for task.detector.head_norm; the nearest legal are {low} and {low + groups}."
        )


def _hardware_fits(config: RunConfig) -> None:
    trainer = config.trainer
    if config.task.name is not TaskName.detection:
        return
    if trainer.strategy is Strategy.fsdp:
        raise ConfigError(
            "trainer.strategy=fsdp cannot be used with task=detection, whose heads are not cut "
            "into pieces; use trainer=ddp."
        )
    if trainer.compile:
        raise ConfigError(
            "trainer.compile=True has no meaning for task=detection: what a detector computes "
            "depends on what it finds; leave it False."
        )


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _keys_have_meaning,
    _maps_exist,
    _detector_fits,
    _hardware_fits,
)
