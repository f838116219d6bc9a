"""Whether a norm can stand in a backbone, and in its pre-training.

In GreenMIM every norm sees the visible tokens only. For ``in`` these are the tokens of which a
sample consists, so its statistics are over them, and ``bn`` takes those of the batch likewise;
both are legal. Their statistics thus come from other tokens than in the task, which is a property
of these norms and part of what the comparison measures.
"""

from __future__ import annotations

from collections.abc import Callable

from triptych.choices import ClassToken, DtnPrefix, Family, NormName, PretrainName
from triptych.config import ConfigError, RunConfig
from triptych.legality.geometry import stage_grids, stage_mlp_ratios, total_stride
from triptych.legality.pretraining import visible_units

IN = NormName["in"]
BY_HEAD = (NormName.dtn, NormName.gn)
CLASS_TOKEN = (Family.vit, Family.released_vit, Family.t2t_vit)


def _options_belong_to_dtn(config: RunConfig) -> None:
    norm = config.norm
    if norm.name is NormName.dtn:
        return
    if norm.pool_to is not None:
        raise ConfigError(
            f"norm.pool_to={norm.pool_to} has no meaning for norm.name={norm.name}; "
            "leave it null or use norm=dtn."
        )
    if norm.position_lr_factor != 1:
        raise ConfigError(
            f"norm.position_lr_factor={norm.position_lr_factor:g} has no meaning for norm.name="
            f"{norm.name}; leave it 1 or use norm=dtn."
        )
    if norm.prefix is not DtnPrefix.own:
        raise ConfigError(
            f"norm.prefix={norm.prefix} has no meaning for norm.name={norm.name}; leave it own or "
            "use norm=dtn."
        )


def _grids_pool(config: RunConfig) -> None:
    pool_to, bone = config.norm.pool_to, config.backbone
    if pool_to is None:
        return
    for stage, side in enumerate(_normalised_grids(config)):
        if side > pool_to and side % pool_to:
            legal = [n for n in range(1, side + 1) if side % n == 0]
            raise ConfigError(
                f"norm.pool_to={pool_to} does not divide the {side}x{side} token grid of stage "
                f"{stage + 1} of backbone={bone.name}; legal there are {legal}, or null."
            )


def _normalised_grids(config: RunConfig) -> list[int]:
    """Sides of the grids over which the norm is put; PVT's last stage keeps LayerNorm."""
    grids = stage_grids(config.backbone, config.data.image_size)
    return grids[:-1] if config.backbone.family is Family.pvt else grids


def _prefix_tokens_exist(config: RunConfig) -> None:
    norm, bone = config.norm, config.backbone
    if norm.prefix is DtnPrefix.own:
        return
    first = bone.class_token is ClassToken.first and bone.family in (*CLASS_TOKEN, Family.timm)
    if not first:
        raise ConfigError(
            f"norm.prefix={norm.prefix} cannot be used with backbone={bone.name}: no token outside "
            "the token grid passes its norms; leave it own, or use a backbone with a class token "
            "from the first block, such as vit_nano."
        )
    if norm.pool_to is not None:
        raise ConfigError(
            f"norm.prefix={norm.prefix} needs exact statistics, but norm.pool_to={norm.pool_to}; "
            "leave one of them at its default."
        )


def _heads_divide_hidden(config: RunConfig) -> None:
    """LeViT's norm in the MLP is over its hidden channels, which attention leaves free."""
    bone = config.backbone
    if bone.family is not Family.levit or config.norm.name not in BY_HEAD:
        return
    ratios = stage_mlp_ratios(bone)
    for stage, (width, heads) in enumerate(zip(bone.embed_dims, bone.num_heads, strict=True)):
        hidden = int(width * ratios[stage])
        if hidden % heads:
            raise ConfigError(
                f"norm={config.norm.name} cannot be used with backbone={bone.name}: it groups the "
                f"{hidden} channels of the MLP of stage {stage + 1} by {heads} heads, which do not "
                "divide them; change backbone.num_heads or backbone.mlp_ratio, or use another norm."
            )


def _tokens_vary(config: RunConfig) -> None:
    if config.norm.name is not IN:
        return
    bone = config.backbone
    class_token = bone.family in CLASS_TOKEN and bone.class_token is ClassToken.first
    for stage, side in enumerate(_normalised_grids(config)):
        if side == 1 and not class_token:
            raise ConfigError(
                f"norm=in cannot be used with backbone={bone.name} at data.image_size="
                f"{config.data.image_size}: stage {stage + 1} has a single token, which has no "
                "variance over tokens; use a larger image or another norm."
            )
    pre, half = config.pretrain, 2 * total_stride(bone)
    if pre.name is PretrainName.uniform and config.data.image_size == half:
        raise ConfigError(
            f"norm=in cannot be used with pretrain=uniform at data.image_size={half}, which leaves "
            "a single token in the last stage, without a variance over tokens; use a larger image "
            "or another norm."
        )
    lone = bone.family is not Family.pvt  # its last stage keeps LayerNorm
    if pre.name is PretrainName.greenmim and visible_units(config) == 1 and lone:
        raise ConfigError(
            f"norm=in cannot be used with pretrain.mask_ratio={config.pretrain.mask_ratio:g}, "
            "which leaves a single visible token in the last stage, without a variance over "
            "tokens; give a smaller ratio or use another norm."
        )


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _options_belong_to_dtn,
    _grids_pool,
    _prefix_tokens_exist,
    _heads_divide_hidden,
    _tokens_vary,
)
