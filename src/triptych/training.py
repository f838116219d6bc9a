"""The stages that train: pre-training, shared between runs, and the task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from triptych.assembly import (
    build_masked_model,
    build_model,
    fit_settings,
    load_data,
    optimizer_settings,
)
from triptych.choices import MergeOrder, PretrainName, TaskName
from triptych.config import DataConfig, PretrainConfig, RunConfig, TaskConfig
from triptych.data.images import ImageData
from triptych.data.loading import ResumableLoader, make_loader
from triptych.data.samples import ImageDataset
from triptych.data.sequences import ListOpsDataset, SequenceData
from triptych.data.subset import LabelledPart
from triptych.measure.timing_lock import timing_lock
from triptych.mim.weights import load_backbone
from triptych.seeding import derive_seed
from triptych.stages import Stage, pretrain_stage, task_stage
from triptych.tasks.checkpoints import LAST, AtomicCheckpointIO
from triptych.tasks.classification import ClassificationModule
from triptych.tasks.dtn_callback import dtn_curves
from triptych.tasks.fit import fit, pick_device
from triptych.tasks.listops import ListOpsModule
from triptych.tasks.metric_log import Listener, MetricLog, read_rows
from triptych.tasks.pretraining import PretrainingModule
from triptych.tasks.progress import Progress, ProgressSink
from triptych.tasks.step_masks import MaskedImages, MaskPlanner

WEIGHTS = "weights.safetensors"
BACKBONE = "backbone.safetensors"
CURVES = "metrics.jsonl"


@dataclass(frozen=True)
class Surroundings:
    """Who hears of a run's progress (``sink``) and of its numbers (``listen``)."""

    sink: ProgressSink
    listen: Listener


def train_loader(
    config: RunConfig,
    stage: PretrainConfig | TaskConfig,
    dataset: ImageDataset | ListOpsDataset,
) -> ResumableLoader:
    """Batches in an order that depends on the seed, the stage and the epoch alone."""
    return make_loader(
        dataset,
        batch_size=min(stage.batch_size, len(dataset)),
        seed=derive_seed(config.seed, "order", str(stage.name)),
        shuffle=True,
        drop_last=True,
        max_batches=config.trainer.limit_batches,
        num_workers=config.data.workers,
    )


def test_loader(config: RunConfig, dataset: ImageDataset | ListOpsDataset) -> ResumableLoader:
    return make_loader(
        dataset, batch_size=256, seed=0, shuffle=False, num_workers=config.data.workers
    )


def run_stage(
    stage: Stage, make: Callable[[Path], dict[str, Any]], around: Surroundings
) -> dict[str, Any]:
    """Obtain a stage that trains; the curves of one that is done already are handed on."""
    if stage.done() is not None:
        around.sink(Progress(stage.kind, 1.0, "already done"))
        around.listen(read_rows(stage.folder / CURVES))
    # Timing takes this lock for itself, so nothing is timed while something trains.
    with timing_lock(
        exclusive=False, report=lambda line: around.sink(Progress(stage.kind, 0.0, line))
    ):
        return stage.obtain(make)


def pretrain(
    config: RunConfig, data: ImageData | SequenceData, around: Surroundings
) -> dict[str, Any] | None:
    """Pre-train, or find it done; None where the run trains nothing beforehand."""
    if not config.pretrain.name.trains or isinstance(data, SequenceData):
        return None

    def make(folder: Path) -> dict[str, Any]:
        backbone = build_model(config, data.num_classes, drop_path=config.pretrain.drop_path)
        masked = build_masked_model(config, backbone)
        planner = MaskPlanner(
            masked,
            ratio=config.pretrain.mask_ratio,
            per_sample=config.pretrain.mask_per_sample,
            seed=derive_seed(config.seed, "masks"),
        )
        images = MaskedImages(pretraining_images(config, data), planner)
        loader = train_loader(config, config.pretrain, images)
        settings = optimizer_settings(config.pretrain, config.norm)
        module = PretrainingModule(masked, settings, steps_per_epoch=len(loader))
        seconds = _fit(config, config.pretrain, module, loader, None, folder, "pretrain", around)
        save_weights(masked, folder / WEIGHTS)
        save_weights(masked.backbone, folder / BACKBONE)
        return {"seconds": seconds}

    return run_stage(pretrain_stage(config), make, around)


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


def train_task(
    config: RunConfig, data: ImageData | SequenceData, around: Surroundings
) -> dict[str, Any]:
    """Fine-tune or train from scratch, and evaluate; the notes hold the test metrics."""

    def make(folder: Path) -> dict[str, Any]:
        model = build_model(config, data.num_classes, drop_path=config.task.drop_path)
        start_from_pretraining(config, model)
        loader = train_loader(config, config.task, task_images(config, data))
        test = test_loader(config, data.test)
        module = task_module(config, model, len(loader), data.num_classes)
        seconds = _fit(config, config.task, module, loader, test, folder, "task", around)
        save_weights(module.evaluated, folder / WEIGHTS)
        metrics = evaluate(module.evaluated, test, pick_device(str(config.trainer.accelerator)))
        if isinstance(data, SequenceData):
            metrics["test/accuracy_commonest"] = data.commonest_share
        return {"seconds": seconds, "metrics": metrics}

    return run_stage(task_stage(config), make, around)


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


def _fit(
    config: RunConfig,
    stage: PretrainConfig | TaskConfig,
    module: PretrainingModule | ClassificationModule | ListOpsModule,
    loader: ResumableLoader,
    test: ResumableLoader | None,
    folder: Path,
    name: str,
    around: Surroundings,
) -> float:
    log = MetricLog(folder / CURVES, name, (around.listen,))
    if isinstance(module, PretrainingModule):
        backbone: nn.Module = module.model.backbone
    else:
        backbone = module.evaluated
    seconds = fit(
        module,
        loader,
        test,
        folder,
        fit_settings(config, stage),
        log=log,
        seed=config.seed,
        sink=around.sink,
        callbacks=dtn_curves(log, backbone),
    )
    AtomicCheckpointIO().remove_checkpoint(folder / LAST)
    return seconds


def save_weights(model: nn.Module, path: Path) -> None:
    """Weights of ``model``, each tensor once, as safetensors; whole or not at all."""
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    names: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), name)
    kept = {name: tensors[name].contiguous() for name in names.values()}
    unfinished = path.with_suffix(".unfinished")
    save_file(kept, unfinished)
    unfinished.replace(path)


@torch.no_grad()
def evaluate(model: nn.Module, loader: ResumableLoader, device: torch.device) -> dict[str, float]:
    """Accuracy and cross-entropy over the test samples."""
    former = model.training
    model.eval().to(device)
    correct = correct5 = count = 0
    loss = 0.0
    loader.set_position(0)
    for images, labels, _indices in loader:
        logits = model(images.to(device))
        target = labels.to(device)
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        correct += int(top[:, 0].sum())
        correct5 += int(top.any(1).sum())
        loss += float(F.cross_entropy(logits, target, reduction="sum"))
        count += len(labels)
    model.train(former)
    metrics = {"test/accuracy": correct / count, "test/loss": loss / count}
    if logits.shape[1] > 5:
        metrics["test/accuracy_top5"] = correct5 / count
    return metrics
