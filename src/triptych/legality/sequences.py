"""Whether token sequences, their encoder and their task come together, and fit each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from triptych.choices import DtnPrefix, Family, NormName, PretrainName, TaskName
from triptych.config import BackboneConfig, ConfigError, DataConfig, RunConfig, TaskConfig

# Their statistics are over all tokens that they are given, and padding is no token.
BLIND_TO_PADDING = (NormName.bn, NormName["in"], NormName.gn)
SEQUENCE_KEYS = ("block_size", "random_blocks", "hashes")
LISTOPS_KEYS = (
    *("min_length", "max_length", "max_depth", "max_args"),
    *("train_sequences", "test_sequences"),
)
NEUTRAL_DATA = ("name", "root", "workers", *LISTOPS_KEYS)
# What only images, or only the layers of timm's models, can be given.
IMAGE_TASK_KEYS = (
    "mixup",
    "cutmix",
    "drop_path",
    "layer_decay",
    "ema_decay",
    "label_fraction",
    "repeats",
)


def _come_together(config: RunConfig) -> None:
    bone, data, task = config.backbone, config.data, config.task
    sequences = data.name.holds_sequences
    if bone.family.reads_sequences and not sequences:
        raise ConfigError(
            f"backbone={bone.name} reads token sequences, but data={data.name} holds images; use "
            "data=listops_short or listops with task=listops, or an image backbone."
        )
    if sequences and not bone.family.reads_sequences:
        raise ConfigError(
            f"backbone={bone.name} reads images, but data={data.name} holds token sequences; use "
            "backbone=transformer_nano, bigbird_nano or reformer_nano, or image data."
        )
    if (task.name is TaskName.listops) != sequences:
        needed = "listops" if sequences else "classification"
        raise ConfigError(f"task={task.name} cannot be used with data={data.name}; use {needed}.")


def _keys_have_meaning(config: RunConfig) -> None:
    bone = config.backbone
    if not bone.family.reads_sequences:
        refuse_changed("backbone", bone, SEQUENCE_KEYS, f"backbone.family={bone.family}")
        refuse_changed("data", config.data, LISTOPS_KEYS, f"data={config.data.name}")
        return
    image_keys = [item.name for item in fields(DataConfig) if item.name not in NEUTRAL_DATA]
    refuse_changed("data", config.data, image_keys, f"data={config.data.name}")
    refuse_changed("task", config.task, IMAGE_TASK_KEYS, f"task={config.task.name}")
    if config.pretrain.name is not PretrainName.none:
        raise ConfigError(
            f"pretrain={config.pretrain.name} cannot be used with backbone={bone.name}: masked "
            "image modelling needs images; use pretrain=none."
        )


def refuse_changed(
    group: str,
    values: BackboneConfig | DataConfig | TaskConfig,
    keys: list[str] | tuple[str, ...],
    owner: str,
) -> None:
    """Refuse keys that ``owner`` does not read, unless they have their default values."""
    for key in keys:
        value, default = getattr(values, key), getattr(type(values), key)
        if value != default:
            shown, plain = (list(v) if isinstance(v, tuple) else v for v in (value, default))
            raise ConfigError(
                f"{group}.{key}={shown} has no meaning for {owner}; leave it {plain}."
            )


def _norm_sees_no_padding(config: RunConfig) -> None:
    norm, bone = config.norm, config.backbone
    if not bone.family.reads_sequences:
        return
    if norm.name in BLIND_TO_PADDING:
        legal = ", ".join(name for name in NormName if name not in BLIND_TO_PADDING)
        raise ConfigError(
            f"norm={norm.name} cannot be used with backbone={bone.name}: its statistics would be "
            f"over the padding too; legal are {legal}."
        )
    if norm.pool_to is not None:
        raise ConfigError(
            f"norm.pool_to={norm.pool_to} cannot be used with backbone={bone.name}: sequences "
            "differ in length, so no cell divides them all; leave it null."
        )
    if norm.prefix is not DtnPrefix.own:
        raise ConfigError(
            f"norm.prefix={norm.prefix} cannot be used with backbone={bone.name}, whose first "
            "token is an ordinary position of the sequence; leave it own."
        )


def _encoder_fits(config: RunConfig) -> None:
    bone = config.backbone
    if not bone.family.reads_sequences:
        return
    if len(bone.depths) != 1:
        raise ConfigError(
            f"backbone.depths={list(bone.depths)} has {len(bone.depths)} entries, but an encoder "
            "of sequences has one stage: give one number, for example [4]."
        )
    length = -(-config.data.max_length // bone.block_size) * bone.block_size
    least = (5 + 2 * bone.random_blocks) * bone.block_size
    if bone.family is Family.bigbird and length <= least:
        raise ConfigError(
            f"data.max_length={config.data.max_length} is too short for the sparse attention of "
            f"backbone={bone.name}: backbone.block_size={bone.block_size} and "
            f"backbone.random_blocks={bone.random_blocks} need more than {least} tokens; give "
            "smaller blocks, or use backbone=transformer_nano."
        )


def _expressions_exist(config: RunConfig) -> None:
    data = config.data
    if data.name.holds_sequences and data.min_length + 1 >= data.max_length:
        raise ConfigError(
            f"data.max_length={data.max_length} leaves no length above data.min_length="
            f"{data.min_length}; give {data.min_length + 2} or more."
        )


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _come_together,
    _keys_have_meaning,
    _norm_sees_no_padding,
    _encoder_fits,
    _expressions_exist,
)
