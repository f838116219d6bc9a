"""Whether data, schedule and hardware fit each other."""

from __future__ import annotations

from collections.abc import Callable

from triptych.choices import Accelerator, DataName, Precision, Schedule, Strategy
from triptych.config import ConfigError, RunConfig
from triptych.stages import draws_for_parts, sees_batches


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
    if data.name is DataName.image_archive and not data.root:
        raise ConfigError(
            "data.root has no value; data=imagenet_tar or image_shards needs the folder that holds "
            "the archives, for example data.root=/data/imagenet."
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
        steps_down = stage.schedule is Schedule.multistep
        if steps_down != bool(stage.milestones):
            what = "has no milestones" if steps_down else f"has {name}.milestones that it ignores"
            raise ConfigError(
                f"{name}.schedule={stage.schedule} {what}; give both, for example {name}.schedule="
                f"multistep {name}.milestones=[8,11], or neither."
            )
        peak = stage.learning_rate * stage.batch_size / 256
        if stage.start_learning_rate > peak:
            raise ConfigError(
                f"{name}.start_learning_rate={stage.start_learning_rate:g} is above the rate "
                f"{peak:g} that warm-up leads to; give that or less."
            )


def _hardware_fits(config: RunConfig) -> None:
    trainer = config.trainer
    if trainer.precision is Precision.fp16 and trainer.accelerator is Accelerator.cpu:
        raise ConfigError(
            "trainer.precision=fp16 needs a GPU; on the CPU use trainer.precision=bf16 or fp32."
        )
    alone = trainer.strategy is Strategy.single
    if alone and trainer.devices not in (None, 1):
        raise ConfigError(
            f"trainer.devices={trainer.devices} has no meaning for trainer.strategy=single; use "
            "trainer=ddp or fsdp, or leave it null."
        )
    if not alone and trainer.devices is None:
        _count_is_no_matter(config)


def _count_is_no_matter(config: RunConfig) -> None:
    if draws_for_parts(config):
        raise ConfigError(
            "trainer.devices has no value, but the result depends on it: each device draws its own "
            f"proposals for task.detector.kind={config.task.detector.kind}; give it, for example "
            "trainer.devices=8."
        )
    if sees_batches(config):
        raise ConfigError(
            "trainer.devices has no value, but the result depends on it: the statistics of batch "
            "normalization, or a mask for a whole batch, are those of each device; give it, for "
            f"example trainer.devices=8 (trainer.strategy={config.trainer.strategy})."
        )


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _data_fits,
    _schedule_fits,
    _hardware_fits,
)
