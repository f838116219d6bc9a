"""Which configurations can run: ranges of single keys, then combinations.

Nothing here imports torch, so a sweep of a hundred cells is checked in a moment, before any work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
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


@dataclass(frozen=True)
class Range:
    """An interval of legal values; an open end excludes its bound."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"more than {self.low:g}" if self.open_low else f"{self.low:g} or more"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"


POSITIVE = Range(0, open_low=True)
COUNT = Range(1)
NONNEGATIVE = Range(0)
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, open_high=True)
PART = Range(0, 1, open_low=True)

RANGES: dict[str, Range] = {
    "seed": NONNEGATIVE,
    "backbone.mlp_ratio": POSITIVE,
    "backbone.patch_size": COUNT,
    "backbone.window_size": COUNT,
    "norm.pool_to": COUNT,
    "pretrain.epochs": NONNEGATIVE,
    "pretrain.batch_size": COUNT,
    "pretrain.mask_ratio": BELOW_ONE,
    "pretrain.mask_unit": COUNT,
    "pretrain.decoder_dim": COUNT,
    "pretrain.decoder_depth": NONNEGATIVE,
    "pretrain.decoder_heads": COUNT,
    "pretrain.learning_rate": POSITIVE,
    "pretrain.min_learning_rate": NONNEGATIVE,
    "pretrain.weight_decay": NONNEGATIVE,
    "pretrain.betas": BELOW_ONE,
    "pretrain.warmup_epochs": NONNEGATIVE,
    "pretrain.clip_grad": POSITIVE,
    "pretrain.drop_path": BELOW_ONE,
    "data.image_size": COUNT,
    "data.channels": COUNT,
    "data.train_fraction": PART,
    "data.test_fraction": Range(0, 1, open_low=True, open_high=True),
    "data.workers": NONNEGATIVE,
    "data.crop_padding": NONNEGATIVE,
    "data.flip": SHARE,
    "data.random_resized_crop": PART,
    "data.color_jitter": NONNEGATIVE,
    "data.erasing": SHARE,
    "data.synthetic_images": Range(4),
    "data.synthetic_classes": Range(2),
    "task.epochs": COUNT,
    "task.batch_size": COUNT,
    "task.learning_rate": POSITIVE,
    "task.min_learning_rate": NONNEGATIVE,
    "task.weight_decay": NONNEGATIVE,
    "task.betas": BELOW_ONE,
    "task.warmup_epochs": NONNEGATIVE,
    "task.layer_decay": PART,
    "task.clip_grad": POSITIVE,
    "task.label_smoothing": BELOW_ONE,
    "task.mixup": NONNEGATIVE,
    "task.cutmix": NONNEGATIVE,
    "task.drop_path": BELOW_ONE,
    "task.ema_decay": BELOW_ONE,
    "task.evaluate_every": COUNT,
    "trainer.threads": COUNT,
    "trainer.checkpoint_every": COUNT,
    "trainer.limit_batches": COUNT,
    "measure.batch_size": COUNT,
    "measure.rounds": Range(3),
    "visualize.images": Range(1, 32),
}


def check(config: RunConfig) -> None:
    """Refuse a configuration that cannot run.

    Raises:
        ConfigError: one sentence with the key, the value and what would be legal.
    """
    for key, value in _leaves(config):
        if key in RANGES:
            _check_range(key, value, RANGES[key])
    for rule in RULES:
        rule(config)


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in vars(config).items():
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check_range(key: str, value: Any, legal: Range) -> None:
    parts = value if isinstance(value, tuple) else (value,)
    for part in parts:
        if part is not None and not legal.holds(part):
            raise ConfigError(f"{key}={part:g} is out of range: it must be {legal}.")


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
