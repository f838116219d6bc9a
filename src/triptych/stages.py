"""Stages of a run and where their products lie.

A stage writes into a folder named after a key that is derived from just the part of the
configuration that can change its product. A folder with a ``done.json`` is whole and is not made
again; one without is gone on with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych.choices import DataName, DetectorKind, Family, NormName, PretrainName, TaskName
from triptych.composition import to_plain
from triptych.config import BackboneConfig, NormConfig, RunConfig, TaskConfig
from triptych.records import digest, folder_lock, now, read_json, write_json

DONE = "done.json"

# Raise a number when the code of a stage changes what it computes.
STAGE_VERSION = {"pretrain": 1, "task": 1, "features": 1, "cost": 1}


# Keys that came after runs had been recorded; at their default value they are not part of a key.
LATER = (
    *("secondary_ratio", "random_resized_crop", "checkpoint", "merging", "label_fraction"),
    *("grouping", "probe_images"),
    *("scenes", "scene_items", "prefix", "schedule", "block_size", "random_blocks", "hashes"),
    *("start_learning_rate", "milestones", "repeats", "shuffle_blocks"),
    *("min_length", "max_length", "max_depth", "max_args", "train_sequences", "test_sequences"),
    *("run", "weights", "photographs"),
    *("neighbours", "temperature", "regularization", "corruptions", "severities"),
    *("test_images", "test_sizes", "corrupted_root"),
    *("short_side", "long_side", "training_sides", "annotations", "folders"),
    "detector",
)
# What of the data group changes no image.
UNSEEN = ("workers", "download", "expected_classes", "expected_train", "expected_test")
# All that counts of the pre-training that a file holds.
UNTRAINED = ("name", "checkpoint", "merging")
# What of the group task the probes of frozen features read, and what only examinations do.
PROBED = {
    TaskName.knn: ("name", "label_fraction", "neighbours", "temperature"),
    TaskName.linear_probe: ("name", "label_fraction", "regularization"),
}
EXAMINED = ("corruptions", "severities", "test_images", "test_sizes")


@dataclass(frozen=True)
class Stage:
    """One stage of one run: its kind, what its product depends on, and its folder."""

    kind: str
    parts: dict[str, Any]
    folder: Path

    @property
    def key(self) -> str:
        return stage_key(self.kind, self.parts)

    def done(self) -> dict[str, Any] | None:
        """What the stage noted when it was finished, or None."""
        path = self.folder / DONE
        return read_json(path) if path.exists() else None

    def obtain(self, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Return the stage's notes, running ``make(folder)`` first where they are missing.

        Another process that makes the same product is waited for, not raced.
        """
        notes = self.done()
        if notes is not None:
            return notes
        with folder_lock(self.folder, wait=True, what=f"stage {self.kind}"):
            notes = self.done()
            if notes is None:
                started = time.monotonic()
                notes = {"parts": self.parts} | make(self.folder)
                notes |= {"finished": now(), "seconds_of_last_process": time.monotonic() - started}
                write_json(self.folder / DONE, notes)
        return notes


def stage_key(kind: str, parts: dict[str, Any]) -> str:
    return digest({"kind": kind, "version": STAGE_VERSION[kind], "parts": parts})[:16]


def backbone_parts(backbone: BackboneConfig) -> dict[str, Any]:
    """What of the backbone's configuration changes the network: its name does not."""
    return {key: value for key, value in training_parts(backbone).items() if key != "name"}


def norm_parts(norm: NormConfig) -> dict[str, Any]:
    """LayerNorm has no options; those of DTN must not change its key."""
    return training_parts(norm) if norm.name is NormName.dtn else {"name": str(norm.name)}


def data_parts(config: RunConfig) -> dict[str, Any]:
    """What of the data group changes the images: not how many workers read them."""
    plain = training_parts(config.data)
    kept = {key: value for key, value in plain.items() if key not in UNSEEN}
    return kept | ({"composition": 2} if config.data.name is DataName.scenes else {})


def trainer_parts(config: RunConfig) -> dict[str, Any]:
    plain = to_plain(config.trainer)
    parts = {key: plain[key] for key in ("precision", "limit_batches")}
    return parts | (shared_parts(config) if sees_batches(config) else {})


def shared_parts(config: RunConfig) -> dict[str, int]:
    """In how many parts a batch is computed, if more than one."""
    shared = (config.trainer.devices or 1) * config.trainer.accumulate
    return {"parts": shared} if shared > 1 else {}


def sees_batches(config: RunConfig) -> bool:
    """Whether it matters which samples are computed together, and so how a batch is shared.

    Batch normalization takes statistics of them, and a mask may be one for all of them.
    """
    by_batch = config.norm.name is NormName.bn
    by_batch |= config.backbone.family in (Family.levit, Family.timm)
    return by_batch or (config.pretrain.name.trains and not config.pretrain.mask_per_sample)


def draws_for_parts(config: RunConfig) -> bool:
    """Whether the task draws anew for each part of a batch, as R-CNN does its proposals."""
    detects = config.task.name is TaskName.detection
    return detects and config.task.detector.kind is not DetectorKind.retinanet


def training_parts(group: Any) -> dict[str, Any]:
    """A group of the configuration without the keys in LATER that have their default value."""
    return {
        key: value
        for key, value in to_plain(group).items()
        if key not in LATER or getattr(group, key) != getattr(type(group), key)
    }


def pretrain_parts(config: RunConfig) -> dict[str, Any]:
    return {
        "backbone": backbone_parts(config.backbone),
        "norm": norm_parts(config.norm),
        "pretrain": training_parts(config.pretrain),
        "data": data_parts(config),
        "trainer": trainer_parts(config),
        "seed": config.seed,
    }


def task_parts(config: RunConfig) -> dict[str, Any]:
    pretrain = pretrain_parts(config)
    if not config.pretrain.name.trains:
        plain = to_plain(config.pretrain)
        used = ("name",) if config.pretrain.name is PretrainName.none else UNTRAINED
        pretrain["pretrain"] = {key: plain[key] for key in used}
    if draws_for_parts(config):
        pretrain["trainer"] = pretrain["trainer"] | shared_parts(config)
    return pretrain | {"task": asked_of(config.task)}


def asked_of(task: TaskConfig) -> dict[str, Any]:
    """What of the group ``task`` changes the task's product: without training, little of it."""
    plain = training_parts(task)
    if task.name.examines and task.checkpoint is not None:
        return {key: value for key, value in plain.items() if key in (*UNTRAINED, *EXAMINED)}
    used = PROBED.get(task.name)
    return plain if used is None else {key: plain[key] for key in used if key in plain}


def classifier_config(config: RunConfig) -> RunConfig:
    """The run whose task trains the classifier that ``config`` examines."""
    plain = {key: getattr(TaskConfig, key) for key in EXAMINED}
    task = replace(config.task, name=TaskName.classification, **plain)
    data = config.data
    if data.name is DataName.imagenet_c:
        data = replace(data, name=DataName.image_folder, corrupted_root=None)
    return replace(config, task=task, data=data)


def features_stage(config: RunConfig) -> Stage:
    """Frozen features of all training and test images, for every probe of the same backbone."""
    parts = {key: value for key, value in task_parts(config).items() if key != "task"}
    root = Path(config.output_dir) / "stages"
    return Stage("features", parts, root / f"features-{stage_key('features', parts)}")


def cell_key(config: RunConfig) -> str:
    """The key of a whole run: everything that can change its record."""
    return stage_key(
        "task",
        task_parts(config)
        | {"measure": to_plain(config.measure), "visualize": training_parts(config.visualize)},
    )


def backbone_label(config: RunConfig) -> str:
    backbone = config.backbone
    return str(backbone.timm_name) if backbone.family is Family.timm else backbone.name


def labels(config: RunConfig) -> dict[str, Any]:
    """The names under which a run stands in tables."""
    return {
        "backbone": backbone_label(config),
        "norm": norm_label(config.norm),
        "pretrain": pretrain_label(config),
        "data": str(config.data.name),
        "task": str(config.task.name),
        "seed": config.seed,
    }


def pretrain_label(config: RunConfig) -> str:
    """The pre-training; where nothing is trained and no run looked at, whence the weights are."""
    task = config.task
    if task.name is not TaskName.visualization or task.run:
        return str(config.pretrain.name)
    if task.checkpoint or config.pretrain.name is PretrainName.checkpoint:
        return str(PretrainName.checkpoint)
    return str(task.weights)


def norm_label(norm: NormConfig) -> str:
    """``dtn`` in its default form; other forms say so."""
    plain = NormConfig(name=norm.name)
    if norm.name is not NormName.dtn or norm == plain:
        return str(norm.name)
    changed = [
        f"{key}={value}" for key, value in to_plain(norm).items() if value != to_plain(plain)[key]
    ]
    return f"{norm.name}({','.join(changed)})"


def cell_name(config: RunConfig) -> str:
    """Folder of a run: readable names, then as much of the key as keeps variants apart."""
    names = [str(value) for key, value in labels(config).items() if key != "seed"]
    text = "-".join([*names, f"seed{config.seed}", cell_key(config)[:8]])
    return "".join(letter if letter.isalnum() or letter in "-_=." else "_" for letter in text)


def study_folder(config: RunConfig) -> Path:
    return Path(config.output_dir) / config.study


def cell_folder(config: RunConfig) -> Path:
    return study_folder(config) / "runs" / cell_name(config)


def pretrain_stage(config: RunConfig) -> Stage:
    parts = pretrain_parts(config)
    root = Path(config.output_dir) / "stages"
    return Stage("pretrain", parts, root / f"pretrain-{stage_key('pretrain', parts)}")


def task_stage(config: RunConfig) -> Stage:
    parts = task_parts(config)
    root = Path(config.output_dir) / "stages"
    return Stage("task", parts, root / f"{config.task.name}-{stage_key('task', parts)}")
