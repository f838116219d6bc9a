"""Whether there is a network to look at, and something to look at with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from triptych.choices import (
    DataName,
    Family,
    NormName,
    PretrainName,
    TaskName,
    VisualizeLevel,
    Weights,
)
from triptych.config import ConfigError, RunConfig, TaskConfig

OWN_KEYS = ("run", "weights")
VOC = (DataName.voc_2009, DataName.voc_2012)


def _keys_have_meaning(config: RunConfig) -> None:
    """Keys of training belong to tasks that train, the own ones to the one that does not."""
    task = config.task
    looks = task.name is TaskName.visualization
    own = (*OWN_KEYS, "checkpoint") if looks or task.name.examines else OWN_KEYS
    for item in fields(TaskConfig):
        value, default = getattr(task, item.name), getattr(TaskConfig, item.name, None)
        if item.name in ("name", "detector") or value == default:
            continue
        if looks and item.name not in own:
            raise ConfigError(
                f"task.{item.name}={value} has no meaning for task=visualization, which trains "
                f"nothing; leave it {default}."
            )
        if item.name in OWN_KEYS and not looks:
            raise ConfigError(
                f"task.{item.name}={value} has no meaning for task={task.name}; use "
                "task=visualization."
            )
        if item.name == "checkpoint" and item.name not in own:
            raise ConfigError(
                f"task.checkpoint={value} has no meaning for task={task.name}, which trains the "
                "classifier itself; use pretrain=checkpoint with pretrain.checkpoint for features "
                "from a file."
            )


def _data_have_meaning(config: RunConfig) -> None:
    data, task = config.data, config.task
    if task.name.trains and not data.name.trains:
        raise ConfigError(
            f"data={data.name} has no labels, so that task={task.name} cannot be trained on it; "
            "use other data, or task=visualization."
        )
    if data.photographs and data.name is not DataName.photographs:
        raise ConfigError(
            f"data.photographs={list(data.photographs)} has no meaning for data={data.name}; leave "
            "it empty or use data=photographs."
        )
    if data.name is DataName.photographs and data.channels not in (1, 3):
        raise ConfigError(f"data.channels={data.channels} must be 1 or 3 for data=photographs.")
    if data.name not in VOC:
        return
    if not data.root:
        raise ConfigError(
            f"data.root has no value; data={data.name} needs the folder that holds VOCdevkit, for "
            "example data.root=/data/voc."
        )
    if data.channels != 3:
        raise ConfigError(
            f"data={data.name} has images in colour, but the network takes {data.channels} "
            "channel(s); use data=photographs, which can be grey."
        )


def _pictures_alone_are_wanted(config: RunConfig) -> None:
    if not config.task.name.trains and config.visualize.level is VisualizeLevel.off:
        raise ConfigError(
            "visualize=none leaves nothing to do for task=visualization; use full or light."
        )
    if not config.task.name.trains and config.measure.enabled:
        raise ConfigError(
            "measure.enabled=True has no meaning for task=visualization: cost is measured where a "
            "network is trained; use measure=none."
        )


def _one_source(config: RunConfig) -> None:
    """Weights come from a run, from a file, from timm, or are asked for untrained."""
    task, pre, bone = config.task, config.pretrain, config.backbone
    if task.name.trains:
        return
    features = pre.name is PretrainName.checkpoint
    named = {
        f"task.run={task.run}": bool(task.run),
        f"task.checkpoint={task.checkpoint}": bool(task.checkpoint),
        f"pretrain.checkpoint={pre.checkpoint}": features and not task.run,
        "task.weights=untrained": task.weights is Weights.untrained,
    }
    given = [name for name, is_given in named.items() if is_given]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} and {given[1]} both say what the weights are; give one.")
    if task.run:
        return
    if pre.name.trains:
        raise ConfigError(
            f"pretrain={pre.name} cannot be used with task=visualization, which trains nothing; "
            "give task.run, the folder of a run that was pre-trained so, or use pretrain=none."
        )
    if not given and bone.family is not Family.timm:
        raise ConfigError(
            f"task=visualization needs weights for backbone={bone.name}: give task.run=FOLDER (a "
            "finished run) or task.checkpoint=FILE, or ask for task.weights=untrained."
        )
    if not given and config.norm.name is not NormName.ln:
        raise ConfigError(
            f"norm={config.norm.name} does not fit the published weights of "
            f"{bone.timm_name}, which are for norm=ln; use that, task.checkpoint=FILE, or "
            "task.weights=untrained."
        )


RULES: tuple[Callable[[RunConfig], None], ...] = (
    _keys_have_meaning,
    _data_have_meaning,
    _pictures_alone_are_wanted,
    _one_source,
)
