"""Whether pre-training, masks, data, schedule, hardware and pictures fit each other."""

from __future__ import annotations

import math
from collections.abc import Callable

from triptych.choices import Accelerator, DataName, Family, Precision, PretrainName, VisualizeLevel
from triptych.config import ConfigError, RunConfig
from triptych.legality.geometry import total_stride

# Whose visible-token encoder and whose attention pictures are known.
MASKABLE = (Family.vit, Family.swin)


def mask_unit(config: RunConfig) -> int:
    """Side of a mask unit in pixels: the total stride, or two patches of a plain ViT."""
    if config.pretrain.mask_unit is not None:
        return config.pretrain.mask_unit
    stride = total_stride(config.backbone)
    return stride if config.backbone.family is Family.swin else 2 * stride


def visible_units(config: RunConfig) -> int:
    """Mask units that the pre-training leaves visible in each image."""
    units = (config.data.image_size // mask_unit(config)) ** 2
    ratio = config.pretrain.mask_ratio
    if config.pretrain.name is PretrainName.standard:
        return units - math.ceil(units * ratio)
    return int(units * (1 - ratio) + 1e-9)


def _pretraining_fits(config: RunConfig) -> None:
    pre, bone = config.pretrain, config.backbone
    if pre.name is PretrainName.none:
        return
    if pre.epochs == 0:
        raise ConfigError(
            f"pretrain.epochs=0 leaves nothing to pretrain={pre.name}; give 1 or more, or use "
            "pretrain=none."
        )
    if bone.family not in MASKABLE:
        raise ConfigError(
            f"pretrain={pre.name} does not know the layout of backbone={bone.name}; legal are the "
            "backbones of family vit and swin, or pretrain=none."
        )
    if pre.name is PretrainName.greenmim and bone.family is not Family.swin:
        raise ConfigError(
            f"pretrain=greenmim cannot be used with backbone={bone.name}: it needs a hierarchical "
            "backbone (swin_nano, swin_tiny, swin_small, swin_base); for a plain ViT use "
            "pretrain=standard."
        )
    if pre.decoder_dim % pre.decoder_heads or pre.decoder_dim % 4:
        raise ConfigError(
            f"pretrain.decoder_dim={pre.decoder_dim} must be a multiple of 4 and of "
            f"pretrain.decoder_heads={pre.decoder_heads}."
        )


def _masks_fit(config: RunConfig) -> None:
    pre, size = config.pretrain, config.data.image_size
    if pre.name is PretrainName.none:
        return
    unit, stride = mask_unit(config), total_stride(config.backbone)
    greenmim = pre.name is PretrainName.greenmim
    if (unit != stride) if greenmim else (unit % stride != 0):
        rule = f"{stride}" if greenmim else f"a multiple of {stride}"
        raise ConfigError(
            f"pretrain.mask_unit={unit} does not fit backbone={config.backbone.name}: with "
            f"pretrain={pre.name} it must be {rule} (the total stride), or null."
        )
    if size % unit:
        raise ConfigError(
            f"data.image_size={size} is not a multiple of the mask unit {unit}; the nearest legal "
            f"sizes are {max(unit, size // unit * unit)} and {size // unit * unit + unit}."
        )
    units = (size // unit) ** 2
    if visible_units(config) < 1 or visible_units(config) == units:
        extreme = "no visible" if visible_units(config) < 1 else "no hidden"
        raise ConfigError(
            f"pretrain.mask_ratio={pre.mask_ratio:g} leaves {extreme} mask unit of {units}; legal "
            f"here is {1 / units:.4g} to {1 - 1 / units:.4g}."
        )


def _data_fits(config: RunConfig) -> None:
    data = config.data
    fixed = {DataName.mnist_5k: 1, DataName.digits: 1, DataName.fashion_mnist: 1}
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


def _pictures_fit(config: RunConfig) -> None:
    bone = config.backbone
    if config.visualize.level is VisualizeLevel.off or bone.family in (*MASKABLE, Family.timm):
        return
    raise ConfigError(
        f"visualize=light does not know the attention of backbone={bone.name}; legal are the "
        "backbones of family vit and swin, or visualize=none."
    )


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _pretraining_fits,
    _masks_fit,
    _data_fits,
    _schedule_fits,
    _hardware_fits,
    _pictures_fit,
)
