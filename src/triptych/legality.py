"""Which configurations can run: ranges of single keys, then combinations.

Nothing here imports torch, so a sweep of a hundred cells is checked in a moment, before any work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

from triptych.config import (
    Accelerator,
    BackboneConfig,
    ConfigError,
    DataName,
    Family,
    NormName,
    Precision,
    PretrainName,
    RunConfig,
)
from triptych.ranges import RANGES, check_range


def check(config: RunConfig) -> None:
    """Refuse a configuration that cannot run.

    Raises:
        ConfigError: one sentence with the key, the value and what would be legal.
    """
    for key, value in _leaves(config):
        if key in RANGES:
            check_range(key, value, RANGES[key])
    for rule in RULES:
        rule(config)


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in vars(config).items():
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def total_stride(backbone: BackboneConfig) -> int:
    """Pixels on a side of one token of the last stage (one mask unit)."""
    if backbone.family is Family.swin:
        return backbone.patch_size * 2 ** (len(backbone.depths) - 1)
    return backbone.patch_size


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


def _stages_match(config: RunConfig) -> None:
    bone = config.backbone
    if bone.family is Family.timm:
        if not bone.timm_name:
            raise ConfigError(
                "backbone.timm_name has no value; name a timm model, for example "
                "backbone.timm_name=deit_tiny_patch16_224."
            )
        return
    if bone.family is Family.vit and len(bone.depths) != 1:
        raise ConfigError(
            f"backbone.depths={list(bone.depths)} has {len(bone.depths)} entries, but a plain ViT "
            "has one stage: give one number, for example [12]."
        )
    if len(bone.depths) != len(bone.num_heads):
        raise ConfigError(
            f"backbone.num_heads={list(bone.num_heads)} has {len(bone.num_heads)} entries for "
            f"{len(bone.depths)} stages of backbone.depths: give one for each stage."
        )


def _heads_divide_width(config: RunConfig) -> None:
    bone = config.backbone
    for stage, heads in enumerate(bone.num_heads):
        width = bone.embed_dim * (2**stage if bone.family is Family.swin else 1)
        if heads < 1 or width % heads:
            legal = [n for n in range(1, width + 1) if width % n == 0 and n <= 32]
            raise ConfigError(
                f"backbone.num_heads={list(bone.num_heads)} does not fit: {heads} heads do not "
                f"divide the width {width} of stage {stage + 1}; legal there are {legal}."
            )


def _image_divides(config: RunConfig) -> None:
    if config.backbone.family is Family.timm:
        return
    stride, size = total_stride(config.backbone), config.data.image_size
    if size % stride:
        lower = max(stride, size // stride * stride)
        raise ConfigError(
            f"data.image_size={size} is not a multiple of the total stride {stride} of "
            f"backbone.name={config.backbone.name}; the nearest legal sizes are {lower} and "
            f"{lower + stride}."
        )


def _norm_fits_backbone(config: RunConfig) -> None:
    if config.norm.pool_to is not None and config.norm.name is not NormName.dtn:
        raise ConfigError(
            f"norm.pool_to={config.norm.pool_to} has no meaning for norm.name={config.norm.name}; "
            "leave it null or use norm=dtn."
        )


def _pretraining_fits(config: RunConfig) -> None:
    pre, bone = config.pretrain, config.backbone
    if pre.name is PretrainName.none:
        return
    if pre.epochs == 0:
        raise ConfigError(
            f"pretrain.epochs=0 leaves nothing to pretrain={pre.name}; give 1 or more, or use "
            "pretrain=none."
        )
    if bone.family is Family.timm:
        raise ConfigError(
            f"pretrain={pre.name} does not know the layout of backbone=timm; legal are the "
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


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _stages_match,
    _heads_divide_width,
    _image_divides,
    _norm_fits_backbone,
    _pretraining_fits,
    _masks_fit,
    _data_fits,
    _schedule_fits,
    _hardware_fits,
)
