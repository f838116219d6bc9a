"""What a stage that trains consists of, alike in every process that takes part, and its run."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from triptych.assembly import (
    build_masked_model,
    build_model,
    fit_settings,
    load_data,
    optimizer_settings,
)
from triptych.choices import MergeOrder, PretrainName, Strategy, TaskName
from triptych.companions import check_sharing, companions, end_with_the_run, say_ready
from triptych.composition import to_run_config
from triptych.config import DataConfig, RunConfig
from triptych.data.detection import DetectionData
from triptych.data.images import ImageData
from triptych.data.loading import ResumableLoader
from triptych.data.samples import ImageDataset
from triptych.data.sequences import ListOpsDataset, SequenceData
from triptych.data.subset import LabelledPart
from triptych.detector_assembly import (
    RunData,
    detection_samples,
    load_run_data,
    put_detector,
)
from triptych.loaders import shared_test_loader, train_loader
from triptych.mim.weights import load_backbone
from triptych.records import read_json
from triptych.seeding import derive_seed
from triptych.stages import pretrain_stage
from triptych.tasks.callbacks import Preempted
from triptych.tasks.checkpoints import LAST, AtomicCheckpointIO
from triptych.tasks.classification import ClassificationModule
from triptych.tasks.detection import DetectionModule
from triptych.tasks.detectors import backbone_of
from triptych.tasks.dtn_callback import dtn_curves
from triptych.tasks.fit import Fitted, fit
from triptych.tasks.listops import ListOpsModule
from triptych.tasks.metric_log import Listener, MetricLog, SilentLog
from triptych.tasks.pretraining import PretrainingModule
from triptych.tasks.progress import ProgressSink
from triptych.tasks.shares import Share
from triptych.tasks.step_masks import MaskedImages, MaskPlanner

BACKBONE = "backbone.safetensors"
CURVES = "metrics.jsonl"
Module = PretrainingModule | ClassificationModule | ListOpsModule | DetectionModule


@dataclass(frozen=True)
class Surroundings:
    """Who hears of a run's progress (``sink``) and of its numbers (``listen``)."""

    sink: ProgressSink
    listen: Listener


@dataclass(frozen=True)
class Parts:
    """What is trained, on what, and on what it is tested meanwhile."""

    module: Module
    train: ResumableLoader
    test: ResumableLoader | None


def pretraining_parts(config: RunConfig, data: ImageData, share: Share) -> Parts:
    """The masked image model, and the images with their masks."""
    check_sharing(config, "pretrain", config.pretrain.batch_size, len(data.train))
    backbone = build_model(config, data.num_classes, drop_path=config.pretrain.drop_path)
    masked = build_masked_model(config, backbone)
    planner = MaskPlanner(
        masked,
        ratio=config.pretrain.mask_ratio,
        per_sample=config.pretrain.mask_per_sample,
        seed=derive_seed(config.seed, "masks"),
    )
    images = MaskedImages(pretraining_images(config, data), planner)
    loader = train_loader(config, config.pretrain, images, share)
    settings = optimizer_settings(config.pretrain, config.norm)
    steps = len(loader) // share.pieces
    return Parts(PretrainingModule(masked, settings, steps_per_epoch=steps), loader, None)


def pretraining_images(config: RunConfig, data: ImageData) -> ImageDataset:
    """The training images as pre-training sees them: ``data.train``, or cropped in its own way."""
    crop = config.pretrain.random_resized_crop
    if crop is None:
        return data.train
    plain = DataConfig()
    own = replace(
        config.data,
        random_resized_crop=crop,
        crop_padding=plain.crop_padding,
        rand_augment=plain.rand_augment,
        color_jitter=plain.color_jitter,
        erasing=plain.erasing,
    )
    images = load_data(replace(config, data=own))
    assert isinstance(images, ImageData)
    return images.train


def task_parts(config: RunConfig, data: ImageData | SequenceData, share: Share) -> Parts:
    """The network with what pre-training gave it, and the labelled samples."""
    samples = task_images(config, data)
    check_sharing(config, "task", config.task.batch_size, len(samples))
    model = build_model(config, data.num_classes, drop_path=config.task.drop_path)
    start_from_pretraining(config, model)
    loader = train_loader(config, config.task, samples, share)
    module = task_module(config, model, len(loader) // share.pieces, data.num_classes)
    return Parts(module, loader, shared_test_loader(config, data.test, share))


def detection_parts(config: RunConfig, data: DetectionData, share: Share) -> Parts:
    """The detector, its backbone with what pre-training gave it, and the images with objects."""
    samples = detection_samples(config, data, training=True)
    check_sharing(config, "task", config.task.batch_size, len(samples))
    model = build_model(config, data.num_classes, drop_path=config.task.drop_path)
    start_from_pretraining(config, model)
    loader = train_loader(config, config.task, samples, share)
    module = DetectionModule(
        put_detector(config, model, data.num_classes),
        data,
        optimizer_settings(config.task, config.norm),
        steps_per_epoch=len(loader) // share.pieces,
        ema_decay=config.task.ema_decay,
    )
    test = shared_test_loader(config, detection_samples(config, data, training=False), share)
    return Parts(module, loader, test)


def task_module(
    config: RunConfig, model: nn.Module, steps_per_epoch: int, num_classes: int
) -> ClassificationModule | ListOpsModule:
    """What trains ``model`` on the task."""
    task, settings = config.task, optimizer_settings(config.task, config.norm)
    if task.name is TaskName.listops:
        return ListOpsModule(
            model, settings, steps_per_epoch=steps_per_epoch, label_smoothing=task.label_smoothing
        )
    return ClassificationModule(
        model,
        settings,
        steps_per_epoch=steps_per_epoch,
        num_classes=num_classes,
        label_smoothing=task.label_smoothing,
        mixup=task.mixup,
        cutmix=task.cutmix,
        ema_decay=task.ema_decay,
    )


def start_from_pretraining(config: RunConfig, model: nn.Module) -> None:
    """Load what ``config.pretrain`` gives into ``model``: a stage's backbone, or a file's.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
    """
    pre = config.pretrain
    if pre.name is PretrainName.checkpoint:
        row_first = pre.merging is MergeOrder.row_first
        load_backbone(model, Path(str(pre.checkpoint)), row_first_merging=row_first)
    elif pre.name.trains:
        model.load_state_dict(load_file(pretrain_stage(config).folder / BACKBONE))


def task_images(config: RunConfig, data: ImageData | SequenceData) -> ImageDataset | ListOpsDataset:
    """The training samples whose labels the task may see."""
    fraction = config.task.label_fraction
    if isinstance(data, SequenceData):
        return data.train
    return data.train if fraction == 1 else LabelledPart(data.train, fraction)


def fit_stage(
    config: RunConfig,
    data: RunData,
    stage: str,
    folder: Path,
    around: Surroundings,
) -> tuple[Module, Fitted]:
    """Train ``stage`` (``pretrain`` or ``task``) to its end, with its companions if it has any."""
    log = MetricLog(folder / CURVES, stage, (around.listen,))
    with companions(config, stage, folder) as company:
        parts = _parts(config, data, stage, company.share)
        company.wait()
        fitted = _fit(config, parts, folder, company.share, log, around.sink)
    AtomicCheckpointIO().remove_checkpoint(folder / LAST)
    if fitted.weights is None:
        return parts.module, fitted
    whole = _parts(config, data, stage, Share()).module
    whole.load_state_dict(fitted.weights)
    return whole, fitted


def follow(path: Path) -> None:
    """Be a companion of the stage that ``path`` describes."""
    end_with_the_run()
    told = read_json(path)
    config, share = to_run_config(told["config"]), Share(**told["share"])
    stage, folder = told["stage"], Path(told["folder"])
    torch.set_num_threads(config.trainer.threads)
    log = SilentLog(folder / CURVES, stage)
    parts = _parts(config, load_run_data(config), stage, share)
    say_ready(folder, share)
    try:
        _fit(config, parts, folder, share, log, lambda _: None)
    except Preempted as stop:  # the process of the run records it
        sys.exit(stop.exit_status)


def _parts(config: RunConfig, data: RunData, stage: str, share: Share) -> Parts:
    if stage == "task" and isinstance(data, DetectionData):
        return detection_parts(config, data, share)
    if isinstance(data, DetectionData):
        data = load_data(config)
    if stage == "task":
        return task_parts(config, data, share)
    assert isinstance(data, ImageData)
    return pretraining_parts(config, data, share)


def _fit(
    config: RunConfig,
    parts: Parts,
    folder: Path,
    share: Share,
    log: MetricLog,
    sink: ProgressSink,
) -> Fitted:
    module = parts.module
    if isinstance(module, PretrainingModule):
        backbone: nn.Module = module.model.backbone
    elif isinstance(module, DetectionModule):
        backbone = backbone_of(module.evaluated)
    else:
        backbone = module.evaluated
    # What DTN holds cannot be read while it lies in pieces.
    whole = config.trainer.strategy is not Strategy.fsdp
    return fit(
        module,
        parts.train,
        parts.test,
        folder,
        fit_settings(config, config.pretrain if log.stage == "pretrain" else config.task),
        log=log,
        seed=config.seed,
        sink=sink,
        callbacks=dtn_curves(log, backbone) if whole else (),
        share=share,
    )
