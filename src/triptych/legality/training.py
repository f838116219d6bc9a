"""Whether data, schedule and hardware fit each other."""

from __future__ import annotations

from collections.abc import Callable

from triptych.choices import Accelerator, DataName, Precision
from triptych.config import ConfigError, RunConfig


def _data_fits(config: RunConfig) -> None:
    data = config.data
    grey = (DataName.mnist_5k, DataName.digits, DataName.fashion_mnist, DataName.scenes)
    fixed = dict.fromkeys(grey, 1)
    expected = fixed.get(data.name)
    if expected is not None and data.channels != expected:
        raise ConfigError(
            f"data.channels={data.channels} does not fit data={data.name}, whose images have "
            f"{expected}."
        )
    if data.name is DataName.image_folder and not data.root:
        raise ConfigError(
            "data.root has no value; data=image_folder needs the folder that holds train/ and "
            "val/ with one folder for each class, for example data.root=/data/imagenet."
        )
    crop = data.random_resized_crop
    if crop is not None and (len(crop) != 2 or crop[0] > crop[1]):
        raise ConfigError(
            f"data.random_resized_crop={list(crop)} must be [smallest, largest] share of the image "
            "area, for example [0.2,1.0]."
        )


def _schedule_fits(config: RunConfig) -> None:
    for name, stage in (("pretrain", config.pretrain), ("task", config.task)):
        if stage.warmup_epochs and stage.warmup_epochs >= stage.epochs:
            raise ConfigError(
                f"{name}.warmup_epochs={stage.warmup_epochs:g} must be less than "
                f"{name}.epochs={stage.epochs}."
            )


def _hardware_fits(config: RunConfig) -> None:
    trainer = config.trainer
    if trainer.precision is Precision.fp16 and trainer.accelerator is Accelerator.cpu:
        raise ConfigError(
            "trainer.precision=fp16 needs a GPU; on the CPU use trainer.precision=bf16 or fp32."
        )


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _data_fits,
    _schedule_fits,
    _hardware_fits,
)
