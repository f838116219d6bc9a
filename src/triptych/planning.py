"""What a run would do, without its data: steps, rates, size, cost and memory of its stages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.assembly import load_data, load_detection, optimizer_settings
from triptych.choices import Accelerator, DataName, Precision, Strategy, TaskName
from triptych.companions import check_sharing, device_count
from triptych.config import DataConfig, PretrainConfig, RunConfig, TaskConfig
from triptych.costing import CostItem, candidate
from triptych.measure import count_parameters, macs_per_image, saved_for_backward
from triptych.stages import Stage, cell_folder, classifier_config, pretrain_stage, task_stage
from triptych.tasks.checkpoints import LAST

GIB = 2**30
# Weights, gradients and AdamW's two moments in 32 bits.
BYTES_OF_A_WEIGHT = 4
PROBE_IMAGES = 2
IMAGENET = (1_281_167, 50_000, 1000)
# Of the 118,287 training images those with an object.
COCO = (117_266, 5_000, 80)
# Tasks that train by gradient steps; probes and examinations ask what has been trained.
TRAINED = (TaskName.classification, TaskName.listops, TaskName.detection)
WHOLE = {DataName.mnist_5k: 5000, DataName.digits: 1797}


@dataclass(frozen=True)
class Sizes:
    """Samples and classes of a data set; ``source`` says how they are known."""

    train: int
    test: int
    classes: int
    source: str


@dataclass(frozen=True)
class StagePlan:
    """One stage that trains.

    ``batch`` images make an update, on ``devices`` devices in ``pieces`` pieces each; rates are
    after scaling with the batch. ``macs`` are multiply-adds of one image's training loss, forward
    pass alone; ``fixed_bytes`` and ``activation_bytes`` are of one device.
    """

    name: str
    state: str
    folder: Path
    samples: int
    epochs: int
    steps_per_epoch: int
    batch: int
    devices: int
    pieces: int
    peak_rate: float
    least_rate: float
    warmup_steps: int
    parameters: int
    macs: float
    fixed_bytes: float
    activation_bytes: float

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class RunPlan:
    """A whole run: its data, its stages that train, and (state, folder) of the others."""

    folder: Path
    sizes: Sizes
    stages: tuple[StagePlan, ...]
    others: tuple[tuple[str, Path], ...] = ()


def known_sizes(config: RunConfig) -> Sizes:
    """Samples of the data set of ``config``; image files are not opened.

    What ``data.expected_…`` says comes first, then the files where they are there, then the size of
    ImageNet-1K.
    """
    data = config.data
    if data.name is DataName.coco:
        return _coco_sizes(config)
    expected = (data.expected_train, data.expected_test, data.expected_classes)
    if None not in expected:
        train, test, classes = (int(count or 0) for count in expected)
        return Sizes(_fraction(train, data.train_fraction), test, classes, "data.expected_…")
    if data.name in (DataName.listops, DataName.listops_short):
        return Sizes(data.train_sequences, data.test_sequences, 10, "the configuration")
    whole = _whole(data)
    if whole is not None:
        test = round(data.test_fraction * whole)
        classes = data.synthetic_classes if data.name is DataName.synthetic else 10
        train = _fraction(whole - test, data.train_fraction)
        return Sizes(train, test, classes, "the data set")
    if data.root is not None and not Path(data.root).exists():
        train, test, classes = IMAGENET
        train = _fraction(train, data.train_fraction)
        return Sizes(train, test, classes, f"ImageNet-1K, as {data.root} is not there")
    loaded = load_data(config)
    return Sizes(len(loaded.train), len(loaded.test), loaded.num_classes, "the files")


def _coco_sizes(config: RunConfig) -> Sizes:
    if not Path(str(config.data.root)).exists():
        return Sizes(*COCO, f"COCO 2017, as {config.data.root} is not there")
    loaded = load_detection(config)
    return Sizes(len(loaded.train), len(loaded.test), loaded.num_classes, "the files")


def _whole(data: DataConfig) -> int | None:
    """Samples before the split, where the configuration alone says."""
    sizes = {DataName.synthetic: data.synthetic_images, DataName.scenes: data.scenes}
    return (WHOLE | sizes).get(data.name)


def _fraction(count: int, share: float) -> int:
    return count if share == 1 else round(share * count)


def plan_run(config: RunConfig) -> RunPlan:
    """The plan of a checked configuration; builds its networks at their size, on the CPU.

    Raises:
        ConfigError: the number of devices is not known.
        DataError: there are files, but they are not a data set.
    """
    sizes = known_sizes(config)
    stages = []
    if config.pretrain.name.trains:
        stage = pretrain_stage(config)
        stages.append(_plan_stage(config, "pretrain", config.pretrain, stage, sizes, sizes.train))
    task, seen = config.task, _fraction(sizes.train, config.task.label_fraction)
    examined = task.name.examines and task.checkpoint is None
    trained = classifier_config(config) if examined else config
    if trained.task.name in TRAINED:
        stage = task_stage(trained)
        stages.append(_plan_stage(trained, "task", trained.task, stage, sizes, seen))
    own = task_stage(config)
    others = () if task.name in TRAINED else ((_state(own), own.folder),)
    return RunPlan(cell_folder(config), sizes, tuple(stages), others)


def _plan_stage(
    config: RunConfig,
    role: str,
    part: PretrainConfig | TaskConfig,
    stage: Stage,
    sizes: Sizes,
    samples: int,
) -> StagePlan:
    trainer = config.trainer
    check_sharing(config, role, part.batch_size, samples)
    batch = min(part.batch_size, samples)
    steps = samples // batch
    steps = steps if trainer.limit_batches is None else min(steps, trainer.limit_batches)
    settings = optimizer_settings(part, config.norm)
    parameters, macs, kept = _count(config, role, sizes.classes)
    devices = device_count(config)
    averaged = isinstance(part, TaskConfig) and part.ema_decay > 0
    return StagePlan(
        name=role,
        state=_state(stage),
        folder=stage.folder,
        samples=samples,
        epochs=part.epochs,
        steps_per_epoch=steps,
        batch=batch,
        devices=devices,
        pieces=trainer.accumulate,
        peak_rate=settings.peak,
        least_rate=settings.min_learning_rate,
        warmup_steps=round(steps * part.warmup_epochs),
        parameters=parameters,
        macs=macs,
        fixed_bytes=_fixed_bytes(config, parameters, devices, averaged),
        activation_bytes=kept * batch / (devices * trainer.accumulate),
    )


def _state(stage: Stage) -> str:
    if stage.done() is not None:
        return "done"
    return "interrupted, goes on" if (stage.folder / LAST).exists() else "to do"


def _fixed_bytes(config: RunConfig, parameters: int, devices: int, averaged: bool) -> float:
    """Weights, their average, gradients, moments; in pieces, all but the weights in use."""
    copies = 4 + averaged
    if config.trainer.strategy is Strategy.fsdp:
        return BYTES_OF_A_WEIGHT * parameters * (1 + copies / devices)
    return BYTES_OF_A_WEIGHT * parameters * copies


def _count(config: RunConfig, role: str, classes: int) -> tuple[int, float, float]:
    """Parameters, MACs and bytes kept for backward of an image, in the precision of the run."""
    here = replace(
        config,
        measure=replace(config.measure, batch_size=PROBE_IMAGES),
        trainer=replace(config.trainer, accelerator=Accelerator.cpu),
    )
    probe = candidate(CostItem(role, here, classes))
    loss = _in_precision(probe.loss, config.trainer.precision)
    probe = replace(probe, loss=loss, infer=probe.loss)
    kept = saved_for_backward(probe) * 2**20
    return count_parameters(probe.model)[0], macs_per_image(probe), kept


def _in_precision(
    loss: Callable[[nn.Module, Any], Tensor], precision: Precision
) -> Callable[[nn.Module, Any], Tensor]:
    def cast(model: nn.Module, batch: Any) -> Tensor:
        # 16 bits are 16 bits: what is kept for backward has the same size in both formats.
        half = torch.autocast("cpu", torch.bfloat16)
        with nullcontext() if precision is Precision.fp32 else half:
            return loss(model, batch)

    return cast


def describe(plan: RunPlan) -> str:
    """The plan in lines for a terminal."""
    sizes = plan.sizes
    lines = [
        f"run       {plan.folder}",
        f"data      {sizes.train:,} training and {sizes.test:,} test samples of {sizes.classes:,} "
        f"classes (from {sizes.source})",
    ]
    for stage in plan.stages:
        lines += ["", f"{stage.name:<9} {stage.state}: {stage.folder}"]
        lines += [f"  {name:<20} {value}" for name, value in _rows(stage)]
    lines += [f"\nwithout training  {state}: {folder}" for state, folder in plan.others]
    return "\n".join(lines)


def _rows(stage: StagePlan) -> list[tuple[str, str]]:
    each = stage.batch // (stage.devices * stage.pieces)
    pieces = f" × {stage.pieces} pieces" if stage.pieces > 1 else ""
    device = "device" if stage.devices == 1 else "devices"
    flops = 6 * stage.macs * stage.batch
    whole = flops * stage.steps
    memory = stage.fixed_bytes + stage.activation_bytes
    return [
        ("steps", f"{stage.steps_per_epoch:,} an epoch × {stage.epochs:,} = {stage.steps:,}"),
        ("global batch", f"{stage.batch:,} = {each:,} × {stage.devices} {device}{pieces}"),
        (
            "learning rate",
            f"{stage.peak_rate:.4g} after {stage.warmup_steps:,} steps of warm-up, at least "
            f"{stage.least_rate:.4g}",
        ),
        ("parameters", f"{stage.parameters:,}"),
        ("MACs", f"{stage.macs:.4g} an image, forward"),
        ("FLOPs", f"{flops:.3g} a step, {whole:.3g} in all (backward taken as twice forward)"),
        (
            "memory",
            f"{_size(memory)} on a device: {_size(stage.fixed_bytes)} for weights, gradients and "
            f"moments, {_size(stage.activation_bytes)} kept for backward; work space comes on top",
        ),
    ]


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"
