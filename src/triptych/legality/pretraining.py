"""Whether a pre-training can be done on a backbone, and its masks fit the image."""

from __future__ import annotations

import math
from collections.abc import Callable

from triptych.choices import DecoderOrder, Family, MergeOrder, NormName, PretrainName
from triptych.config import ConfigError, RunConfig
from triptych.legality.geometry import KEY_REDUCING, ONE_STAGE, total_stride

HIERARCHICAL = (
    Family.swin,
    Family.twins_svt,
    Family.twins_pcpvt,
    Family.pvt,
    Family.pvt_v2,
)
# Whose layout each method knows.
FAMILIES = {
    PretrainName.standard: (Family.vit, *HIERARCHICAL),
    PretrainName.mae: (Family.vit,),
    PretrainName.uniform: HIERARCHICAL,
    PretrainName.greenmim: HIERARCHICAL,
}
# Uniform sampling keeps one of each two by two cells.
UNIFORM_RATIO = 0.75


def mask_unit(config: RunConfig) -> int:
    """Side of a mask unit in pixels, if ``pretrain.mask_unit`` does not say.

    The total stride; two patches of a plain ViT with ``standard``; half the total stride (a cell
    of uniform sampling) with ``uniform``.
    """
    pre, stride = config.pretrain, total_stride(config.backbone)
    if pre.mask_unit is not None:
        return pre.mask_unit
    if pre.name is PretrainName.uniform:
        return stride // 2
    plain = config.backbone.family in ONE_STAGE
    return 2 * stride if plain and pre.name is PretrainName.standard else stride


def visible_units(config: RunConfig) -> int:
    """Mask units that the pre-training leaves visible in each image."""
    units = (config.data.image_size // mask_unit(config)) ** 2
    ratio = config.pretrain.mask_ratio
    if config.pretrain.name is PretrainName.standard:
        return units - math.ceil(units * ratio)
    return int(units * (1 - ratio) + 1e-9)


def _method_knows_backbone(config: RunConfig) -> None:
    pre, bone = config.pretrain, config.backbone
    if not pre.name.trains:
        return
    if pre.epochs == 0:
        raise ConfigError(
            f"pretrain.epochs=0 leaves nothing to pretrain={pre.name}; give 1 or more, or use "
            "pretrain=none."
        )
    legal = FAMILIES[pre.name]
    if bone.family in legal:
        return
    if pre.name is PretrainName.mae and bone.family not in ONE_STAGE:
        raise ConfigError(
            f"pretrain=mae cannot be used with backbone={bone.name}: its encoder is a plain ViT "
            "(family vit); for a hierarchical backbone use pretrain=greenmim, uniform or standard."
        )
    if pre.name is not PretrainName.standard and bone.family is Family.vit:
        raise ConfigError(
            f"pretrain={pre.name} cannot be used with backbone={bone.name}: it needs a "
            f"hierarchical backbone (family {listed(legal, 'or')}); for a plain ViT use "
            "pretrain=mae or pretrain=standard."
        )
    raise ConfigError(
        f"pretrain={pre.name} does not know the layout of backbone={bone.name}; legal are the "
        f"backbones of family {listed(legal, 'and')}, or pretrain=none."
    )


def listed(families: tuple[Family, ...], word: str) -> str:
    """``a, b or c``."""
    *others, last = families
    return f"{', '.join(others)} {word} {last}" if others else str(last)


def _keys_have_meaning(config: RunConfig) -> None:
    pre = config.pretrain
    if pre.secondary_ratio and pre.name.trains and pre.name is not PretrainName.uniform:
        raise ConfigError(
            f"pretrain.secondary_ratio={pre.secondary_ratio:g} has no meaning for pretrain="
            f"{pre.name}; leave it 0 or use pretrain=uniform."
        )
    if pre.decoder_order is DecoderOrder.published and pre.name in (
        PretrainName.standard,
        PretrainName.mae,
        PretrainName.uniform,
    ):
        raise ConfigError(
            f"pretrain.decoder_order=published has no meaning for pretrain={pre.name}; leave it "
            "row_major or use pretrain=greenmim."
        )
    from_file = pre.name is PretrainName.checkpoint
    if from_file and not pre.checkpoint:
        raise ConfigError(
            "pretrain.checkpoint has no value; pretrain=checkpoint needs the file of the weights, "
            "for example pretrain.checkpoint=/data/greenmim_swin_base.pth."
        )
    if pre.checkpoint and not from_file:
        raise ConfigError(
            f"pretrain.checkpoint={pre.checkpoint} has no meaning for pretrain={pre.name}; leave "
            "it null or use pretrain=checkpoint."
        )
    if pre.merging is MergeOrder.row_first and not (
        from_file and config.backbone.family is Family.swin
    ):
        raise ConfigError(
            "pretrain.merging=row_first belongs to pretrain=checkpoint with a backbone of family "
            "swin; leave it column_first."
        )


def _crop_is_a_range(config: RunConfig) -> None:
    crop = config.pretrain.random_resized_crop
    if crop is not None and (len(crop) != 2 or crop[0] > crop[1]):
        raise ConfigError(
            f"pretrain.random_resized_crop={list(crop)} must be [smallest, largest] share of the "
            "image area, for example [0.2,1.0]."
        )


def _decoder_fits(config: RunConfig) -> None:
    pre = config.pretrain
    if pre.name.trains and (pre.decoder_dim % pre.decoder_heads or pre.decoder_dim % 4):
        raise ConfigError(
            f"pretrain.decoder_dim={pre.decoder_dim} must be a multiple of 4 and of "
            f"pretrain.decoder_heads={pre.decoder_heads}."
        )
    width = config.backbone.embed_dim
    if pre.name is PretrainName.mae and width % 4:
        raise ConfigError(
            f"backbone.embed_dim={width} does not fit pretrain=mae, whose fixed positions need a "
            "multiple of 4."
        )


def _units_fit(config: RunConfig) -> None:
    pre, size = config.pretrain, config.data.image_size
    if not pre.name.trains:
        return
    unit, stride = mask_unit(config), total_stride(config.backbone)
    if pre.name is PretrainName.uniform:
        legal = [n for n in range(config.backbone.patch_size, stride + 1) if _is_cell(n, config)]
        fits, rule = unit in legal, f"one of {legal} (whole patches that divide the total stride)"
    elif pre.name is PretrainName.standard:
        fits, rule = unit % stride == 0, f"a multiple of {stride} (the total stride)"
    else:
        fits, rule = unit == stride, f"{stride} (the total stride)"
    if not fits:
        raise ConfigError(
            f"pretrain.mask_unit={unit} does not fit backbone={config.backbone.name}: with "
            f"pretrain={pre.name} it must be {rule}, or null."
        )
    step, what = unit, f"the mask unit {unit}"
    if pre.name is PretrainName.uniform:
        step, what = 2 * stride, f"{2 * stride}, twice the total stride, as pretrain=uniform needs"
    if size % step:
        raise ConfigError(
            f"data.image_size={size} is not a multiple of {what}; the nearest legal "
            f"sizes are {max(step, size // step * step)} and {size // step * step + step}."
        )


def _is_cell(side: int, config: RunConfig) -> bool:
    return side % config.backbone.patch_size == 0 and total_stride(config.backbone) % side == 0


def _units_hold_whole_cells(config: RunConfig) -> None:
    """Keys are reduced in cells; one that a mask unit cuts would be visible in part."""
    pre, bone = config.pretrain, config.backbone
    if pre.name is not PretrainName.greenmim or bone.family not in KEY_REDUCING:
        return
    for stage, ratio in enumerate(bone.sr_ratios):
        side = 2 ** (len(bone.depths) - 1 - stage)
        if side % ratio:
            legal = [n for n in range(1, side + 1) if side % n == 0]
            raise ConfigError(
                f"backbone.sr_ratios={list(bone.sr_ratios)} does not fit pretrain=greenmim, whose "
                f"mask units have {side}x{side} tokens in stage {stage + 1}: {ratio} does not "
                f"divide {side}; legal there are {legal}."
            )


def _ratio_fits(config: RunConfig) -> None:
    pre = config.pretrain
    if not pre.name.trains:
        return
    if pre.name is PretrainName.uniform and pre.mask_ratio != UNIFORM_RATIO:
        raise ConfigError(
            f"pretrain.mask_ratio={pre.mask_ratio:g} does not fit pretrain=uniform, which keeps "
            f"one of each 2x2 cells; give {UNIFORM_RATIO}, and hide more by "
            "pretrain.secondary_ratio."
        )
    units = (config.data.image_size // mask_unit(config)) ** 2
    if visible_units(config) < 1 or visible_units(config) == units:
        extreme = "no visible" if visible_units(config) < 1 else "no hidden"
        raise ConfigError(
            f"pretrain.mask_ratio={pre.mask_ratio:g} leaves {extreme} mask unit of {units}; legal "
            f"here is {1 / units:.4g} to {1 - 1 / units:.4g}."
        )


def _norm_takes_small_grids(config: RunConfig) -> None:
    if config.pretrain.name is PretrainName.uniform and config.norm.name is NormName.dtn:
        raise ConfigError(
            "norm=dtn cannot be used with pretrain=uniform: its position weights are for the whole "
            "token grid, and uniform sampling trains on one of half the side; use "
            "pretrain=greenmim or standard, or another norm."
        )


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _method_knows_backbone,
    _keys_have_meaning,
    _crop_is_a_range,
    _decoder_fits,
    _units_fit,
    _units_hold_whole_cells,
    _ratio_fits,
    _norm_takes_small_grids,
)
