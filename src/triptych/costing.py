"""The cost of the models of a study: measured once for each kind of model, all taking turns.

Seeds do not change the cost, so the cells of a study share these numbers. A study measures before
its first cell starts; a run on its own measures when it has been trained.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.assembly import build_masked_model, build_model
from triptych.choices import Grouping, TaskName
from triptych.composition import to_plain, to_run_config
from triptych.config import RunConfig
from triptych.data.listops import PAD, VOCABULARY
from triptych.detector_assembly import load_run_data, put_detector
from triptych.legality import check
from triptych.measure import Candidate, Cost, measure_interleaved, timing_lock
from triptych.mim import MaskedImageModel, sample_noise
from triptych.records import machine, now, read_json, write_json
from triptych.stages import (
    DONE,
    Stage,
    backbone_parts,
    norm_parts,
    stage_key,
    trainer_parts,
)
from triptych.tasks.fit import pick_device

UNITS = {
    "macs": "MAC/image",
    "train_throughput": "images/s",
    "inference_throughput": "images/s",
    "peak_memory": "MiB",
    "saved_for_backward": "MiB/image",
}
OBJECTS = 3
OF_TRAINING = ("train_throughput", "peak_memory", "saved_for_backward")


@dataclass(frozen=True)
class CostItem:
    """One kind of model to be measured: ``role`` is ``task`` or ``pretrain``."""

    role: str
    config: RunConfig
    num_classes: int

    def stage(self) -> Stage:
        config = self.config
        pretrain = to_plain(config.pretrain)
        shape: tuple[str, ...] = ("name", "mask_ratio", "mask_unit")
        shape += ("mask_per_sample", "normalize_target")
        if config.pretrain.secondary_ratio:
            shape += ("secondary_ratio",)
        if config.pretrain.grouping is not Grouping.cheapest:
            shape += ("grouping",)
        decoder = ("decoder_dim", "decoder_depth", "decoder_heads", "decoder_order")
        parts = {
            "role": self.role,
            "backbone": backbone_parts(config.backbone),
            "norm": norm_parts(config.norm),
            "image": [config.data.channels, config.data.image_size, self.num_classes],
            "measure": to_plain(config.measure),
            "threads": config.trainer.threads,
            "trainer": trainer_parts(config),
            "device": str(pick_device(str(config.trainer.accelerator))),
            "machine": [platform.machine(), machine()["cpu"], machine()["gpu"]],
        }
        if config.data.name.holds_sequences:
            parts["length"] = config.data.max_length
        if config.task.name is TaskName.detection and self.role == "task":
            parts["detector"] = to_plain(config.task.detector)
        if self.role == "pretrain":
            parts["pretrain"] = {key: pretrain[key] for key in shape + decoder}
        root = Path(config.output_dir) / "stages"
        return Stage("cost", parts, root / f"cost-{stage_key('cost', parts)}")


def items(config: RunConfig, num_classes: int) -> list[CostItem]:
    """What of a run has a cost: its task, and its pre-training if it has one."""
    roles = ["task", "pretrain"] if config.pretrain.name.trains else ["task"]
    return [CostItem(role, config, num_classes) for role in roles]


def cost_metrics(config: RunConfig, num_classes: int) -> dict[str, dict[str, Any]]:
    """The cost of a run's models for its record, measured now where it has not been before."""
    if not config.measure.enabled:
        return {}
    wanted = items(config, num_classes)
    measure([item for item in wanted if item.stage().done() is None])
    metrics: dict[str, dict[str, Any]] = {}
    for item in wanted:
        notes = item.stage().done()
        assert notes is not None
        for name, value in notes["cost"].items():
            if config.task.name.probes and name in OF_TRAINING and item.role == "task":
                continue  # a probe trains no part of the network
            if name == "parameters":
                if item.role == "task":
                    metrics["cost/parameters"] = {"value": value, "unit": "count"}
            elif value is not None:
                unit = UNITS[name]
                if config.data.name.holds_sequences:
                    unit = unit.replace("image", "sequence")
                metrics[f"cost/{item.role}/{name}"] = {"value": value, "unit": unit}
    return metrics


def measure_file(path: Path) -> None:
    """Measure whatever the configurations in ``path`` lack, in this process."""
    configs = [to_run_config(plain) for plain in read_json(path)]
    missing: dict[str, CostItem] = {}
    classes: dict[str, int] = {}
    for config in configs:
        check(config)
        data = str(to_plain(config.data))
        if data not in classes:
            classes[data] = load_run_data(config).num_classes
        for item in items(config, classes[data]):
            if item.stage().done() is None:
                missing.setdefault(item.stage().key, item)
    measure(list(missing.values()))


def measure(wanted: list[CostItem]) -> None:
    """Measure ``wanted``, with nothing else of ours running, and note the results."""
    if not wanted:
        return
    torch.set_num_threads(wanted[0].config.trainer.threads)
    rounds = wanted[0].config.measure.rounds
    with timing_lock(exclusive=True):
        for role in ("task", "pretrain"):
            some = {item.stage().key: item for item in wanted if item.role == role}
            if not some:
                continue
            candidates = {key: candidate(item) for key, item in some.items()}
            for key, cost in measure_interleaved(candidates, rounds).items():
                stage = some[key].stage()
                write_json(
                    stage.folder / DONE,
                    {"parts": stage.parts, "cost": _plain(cost), "finished": now()},
                )


def _plain(cost: Cost) -> dict[str, float | None]:
    return {"parameters": cost.parameters} | {name: getattr(cost, name) for name in UNITS}


def candidate(item: CostItem) -> Candidate:
    """The model of ``item`` on its device, with a batch of random images or sequences."""
    config = item.config
    device = pick_device(str(config.trainer.accelerator))
    batch = config.measure.batch_size
    images = _random_inputs(config).to(device)
    model = build_model(config, item.num_classes)
    if item.role == "task" and config.task.name is TaskName.detection:
        detector = put_detector(config, model, item.num_classes).to(device)
        targets = _random_targets(config, item.num_classes, device)
        return Candidate(detector, lambda: (images, targets), batch, _detection_loss, _predict)
    if item.role == "task":
        labels = (torch.arange(batch) % item.num_classes).to(device)
        return Candidate(model.to(device), lambda: (images, labels), batch, _classify, _predict)
    masked = build_masked_model(config, model).to(device)
    rows, columns = masked.unit_grid
    noise = partial(sample_noise, rows * columns, seed=0, indices=range(batch))
    masks = [masked.hide(noise(epoch=epoch), config.pretrain.mask_ratio) for epoch in range(8)]
    order = torch.arange(rows * columns).expand(batch, -1).to(device)
    turn = iter(range(10**9))

    def batch_of_pretraining() -> tuple[Tensor, list[Tensor], Any, Tensor]:
        return images, masks, turn, order

    return Candidate(masked, batch_of_pretraining, batch, _mim_loss, _encode)


def _random_inputs(config: RunConfig) -> Tensor:
    """Images, or token sequences of which none is padding and all have the greatest length."""
    data, batch = config.data, config.measure.batch_size
    generator = torch.Generator().manual_seed(0)
    if data.name.holds_sequences:
        shape = (batch, data.max_length)
        return torch.randint(PAD + 1, len(VOCABULARY), shape, generator=generator)
    return torch.randn(
        (batch, data.channels, data.image_size, data.image_size), generator=generator
    )


def _random_targets(config: RunConfig, classes: int, device: torch.device) -> list[dict[str, Any]]:
    """Three objects in each image: as many as in a scene on average; COCO's have seven."""
    side, generator = config.data.image_size, torch.Generator().manual_seed(0)
    targets = []
    for _ in range(config.measure.batch_size):
        corners = torch.rand(OBJECTS, 2, generator=generator) * side / 2
        sides = (0.25 + 0.25 * torch.rand(OBJECTS, 2, generator=generator)) * side
        masks = torch.zeros(OBJECTS, side, side, dtype=torch.bool)
        boxes = torch.cat((corners, corners + sides), 1)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
        labels = torch.arange(OBJECTS) % classes + 1
        target = {"boxes": boxes, "labels": labels, "masks": masks}
        targets.append({key: value.to(device) for key, value in target.items()})
    return targets


def _detection_loss(model: nn.Module, batch: Any) -> Tensor:
    former = model.training
    model.train()  # in evaluation there are answers and no losses
    losses = model(*batch)
    model.train(former)
    return torch.stack(list(losses.values())).sum()


def _classify(model: nn.Module, batch: Any) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def _predict(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0])


def _mim_loss(model: nn.Module, batch: Any) -> Tensor:
    assert isinstance(model, MaskedImageModel)
    images, masks, turn, order = batch
    mask = masks[next(turn) % len(masks)]
    return model(images, mask, model.plan(mask), order).loss


def _encode(model: nn.Module, batch: Any) -> Tensor:
    assert isinstance(model, MaskedImageModel)
    images, masks, _turn, _order = batch
    return model.encoder(images, masks[0])
