"""Whether a backbone can be built, and takes the image."""

from __future__ import annotations

from collections.abc import Callable

from triptych.choices import ClassToken, Family
from triptych.config import BackboneConfig, ConfigError, RunConfig
from triptych.legality.geometry import (
    KEY_REDUCING,
    ONE_STAGE,
    WIDTH_LISTED,
    image_multiple,
    stage_grids,
    stage_widths,
)

LATE = (Family.released_vit, Family.t2t_vit)
LEVIT_STEMS = (8, 16)


def _stages_match(config: RunConfig) -> None:
    bone = config.backbone
    if bone.family is Family.timm:
        if not bone.timm_name:
            raise ConfigError(
                "backbone.timm_name has no value; name a timm model, for example "
                "backbone.timm_name=deit_tiny_patch16_224."
            )
        return
    if bone.family in ONE_STAGE and len(bone.depths) != 1:
        raise ConfigError(
            f"backbone.depths={list(bone.depths)} has {len(bone.depths)} entries, but a plain ViT "
            "has one stage: give one number, for example [12]."
        )
    _one_for_each_stage(bone, "num_heads")
    if bone.family in WIDTH_LISTED:
        _one_for_each_stage(bone, "embed_dims")
    if bone.family in KEY_REDUCING:
        _one_for_each_stage(bone, "sr_ratios")
    if bone.mlp_ratios:
        _one_for_each_stage(bone, "mlp_ratios")


def _one_for_each_stage(bone: BackboneConfig, key: str) -> None:
    values = getattr(bone, key)
    if len(bone.depths) != len(values):
        raise ConfigError(
            f"backbone.{key}={list(values)} has {len(values)} entries for "
            f"{len(bone.depths)} stages of backbone.depths: give one for each stage."
        )


def _keys_have_meaning(config: RunConfig) -> None:
    bone = config.backbone
    if bone.family is Family.timm:
        return
    if bone.family in WIDTH_LISTED and bone.embed_dim:
        raise ConfigError(
            f"backbone.embed_dim={bone.embed_dim} has no meaning for backbone.family="
            f"{bone.family}; give backbone.embed_dims, one width for each stage."
        )
    without = {
        "embed_dims": bone.family not in WIDTH_LISTED,
        "sr_ratios": bone.family not in KEY_REDUCING,
        "mlp_ratios": bone.family not in WIDTH_LISTED,
    }
    for key, meaningless in without.items():
        if meaningless and getattr(bone, key):
            legal = KEY_REDUCING if key == "sr_ratios" else WIDTH_LISTED
            raise ConfigError(
                f"backbone.{key}={list(getattr(bone, key))} has no meaning for backbone.family="
                f"{bone.family}, only for {', '.join(legal)}; leave it empty."
            )


def _heads_divide_width(config: RunConfig) -> None:
    bone = config.backbone
    if bone.family in (Family.levit, Family.timm):
        return
    for stage, (heads, width) in enumerate(zip(bone.num_heads, stage_widths(bone), strict=True)):
        if heads < 1 or width % heads:
            legal = [n for n in range(1, width + 1) if width % n == 0 and n <= 32]
            raise ConfigError(
                f"backbone.num_heads={list(bone.num_heads)} does not fit: {heads} heads do not "
                f"divide the width {width} of stage {stage + 1}; legal there are {legal}."
            )


def _patch_size_fits(config: RunConfig) -> None:
    bone = config.backbone
    legal = {Family.levit: LEVIT_STEMS, Family.pvt_v2: (4,)}.get(bone.family)
    if legal is not None and bone.patch_size not in legal:
        raise ConfigError(
            f"backbone.patch_size={bone.patch_size} does not fit backbone.family={bone.family}, "
            f"whose first layers have a stride of {' or '.join(str(size) for size in legal)}."
        )


def _levit_fits(config: RunConfig) -> None:
    bone = config.backbone
    if bone.family is not Family.levit:
        return
    if min(bone.num_heads) < 1:
        raise ConfigError(f"backbone.num_heads={list(bone.num_heads)} must be 1 or more.")
    if bone.key_dim > min(bone.embed_dims):
        raise ConfigError(
            f"backbone.key_dim={bone.key_dim} is more than the width {min(bone.embed_dims)} of a "
            "stage, so that its shrinking attention would have no head; give that or less."
        )


def _windows_fit(config: RunConfig) -> None:
    bone = config.backbone
    if bone.family is Family.twins_svt and bone.window_size < 2:
        raise ConfigError(
            f"backbone.window_size={bone.window_size} leaves nothing to attend to in the windows "
            "of Twins-SVT; give 2 or more."
        )


def _soft_splits_fit(config: RunConfig) -> None:
    bone = config.backbone
    if bone.family is not Family.t2t_vit:
        return
    kernels, strides = list(bone.kernels), list(bone.strides)
    if len(kernels) != len(strides) or not kernels:
        raise ConfigError(
            f"backbone.kernels={kernels} and backbone.strides={strides} must have one entry for "
            "each soft split, for example [7, 3, 3] and [4, 2, 2]."
        )
    for kernel, stride in zip(kernels, strides, strict=True):
        if kernel < stride or (stride == 1 and kernel % 2 == 0):
            raise ConfigError(
                f"backbone.kernels={kernels} does not fit backbone.strides={strides}: a kernel "
                "must be at least its stride, and odd where the stride is 1."
            )


def _class_token_fits(config: RunConfig) -> None:
    bone = config.backbone
    if bone.class_token is not ClassToken.late:
        return
    if bone.family not in LATE:
        raise ConfigError(
            f"backbone.class_token=late has no meaning for backbone.family={bone.family}; use "
            f"first, or a backbone of family {' or '.join(LATE)}."
        )
    if bone.depths[0] < 3:
        raise ConfigError(
            f"backbone.depths={list(bone.depths)} is too shallow for backbone.class_token=late, "
            "which joins before the last two blocks; give [3] or more."
        )


def _image_divides(config: RunConfig) -> None:
    if config.backbone.family is Family.timm or config.backbone.family.reads_sequences:
        return
    stride, size = image_multiple(config.backbone), config.data.image_size
    if size % stride:
        lower = max(stride, size // stride * stride)
        raise ConfigError(
            f"data.image_size={size} is not a multiple of the total stride {stride} of "
            f"backbone.name={config.backbone.name}; the nearest legal sizes are {lower} and "
            f"{lower + stride}."
        )


def _keys_reduce(config: RunConfig) -> None:
    bone = config.backbone
    if bone.family not in KEY_REDUCING:
        return
    if bone.family is Family.pvt and bone.sr_ratios[-1] != 1:
        raise ConfigError(
            f"backbone.sr_ratios={list(bone.sr_ratios)} must end with 1 for backbone.family=pvt, "
            "whose class token in the last stage lies on no grid."
        )
    grids = stage_grids(bone, config.data.image_size)
    for stage, (side, ratio) in enumerate(zip(grids, bone.sr_ratios, strict=True)):
        if side % ratio:
            legal = [n for n in range(1, side + 1) if side % n == 0]
            raise ConfigError(
                f"backbone.sr_ratios={list(bone.sr_ratios)} does not fit data.image_size="
                f"{config.data.image_size}: {ratio} does not divide the {side}x{side} token grid "
                f"of stage {stage + 1}; legal there are {legal}."
            )


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _stages_match,
    _keys_have_meaning,
    _heads_divide_width,
    _patch_size_fits,
    _levit_fits,
    _windows_fit,
    _soft_splits_fit,
    _class_token_fits,
    _image_divides,
    _keys_reduce,
)
