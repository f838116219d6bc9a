"""The module of detection: answers in original pixels, precision, and going on after a kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from triptych.backbones.build import BackboneSpec, Family, build_backbone
from triptych.choices import DetectorKind
from triptych.config_detector import DetectorConfig
from triptych.data.augmentation import Augmentation
from triptych.data.canvas import ResizeRule
from triptych.data.detection import DetectionData
from triptych.data.detection_samples import DetectionSamples
from triptych.data.detection_sources import load_detection_scenes
from triptych.data.images import ImageSource, ImageSpec
from triptych.data.loading import make_loader
from triptych.data.samples import SampleKey
from triptych.tasks.callbacks import NonFiniteError
from triptych.tasks.detection import (
    DetectionModule,
    detections,
    in_original,
    precision_metrics,
    predicts_masks,
)
from triptych.tasks.detectors import build_detector
from triptych.tasks.fit import FitSettings, fit
from triptych.tasks.metric_log import MetricLog, read_rows
from triptych.tasks.optimization import OptimizerSettings
from triptych.tasks.progress import Progress

EPOCHS, STEPS, SIDE = 2, 3, 32


@cache
def scenes() -> DetectionData:
    spec = ImageSpec(
        ImageSource.scenes, image_size=SIDE, scenes=20, augmentation=Augmentation(flip=0.5)
    )
    return load_detection_scenes(spec)


def module(kind: DetectorKind, ema_decay: float = 0.0) -> DetectionModule:
    torch.manual_seed(0)
    backbone = build_backbone(
        BackboneSpec(Family.swin, 16, (1, 1), (1, 2), window_size=4, initialization="xavier"),
        image_size=(SIDE, SIDE),
        channels=1,
        num_classes=10,
        drop_path=0.2,
    )
    settings = DetectorConfig(
        kind, channels=16, anchor_scale=2.0, head_norm=True,
        box_width=16, mask_width=8, box_samples=16,
    )  # fmt: skip
    return DetectionModule(
        build_detector(backbone, settings, 10),
        scenes(),
        OptimizerSettings(0.1, 0.0, 0.05, (0.9, 0.999), 0.5, EPOCHS, 5, layer_decay=0.8),
        steps_per_epoch=STEPS,
        ema_decay=ema_decay,
    )


def run(
    folder: Path,
    kind: DetectorKind = DetectorKind.mask_rcnn,
    sink: Callable[[Progress], None] = lambda _: None,
) -> DetectionModule:
    own = module(kind, ema_decay=0.9)
    train = make_loader(
        DetectionSamples(scenes(), training=True, seed=3),
        batch_size=5, seed=5, shuffle=True, drop_last=True,
    )  # fmt: skip
    test = make_loader(DetectionSamples(scenes(), training=False), batch_size=3)
    log = MetricLog(folder / "metrics.jsonl", "task")
    settings = FitSettings(EPOCHS, accelerator="cpu", checkpoint_every=2)
    fit(own, train, test, folder, settings, log=log, seed=7, sink=sink)
    return own


def state(own: DetectionModule) -> list[Tensor]:
    return list(own.state_dict().values())


class KilledError(Exception):
    """Stands in for a kill: nothing is saved on the way out."""


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_killed_run_goes_on_to_the_same_end(tmp_path: Path, step: int) -> None:
    whole = run(tmp_path / "whole")
    seen = 0

    def kill(_: Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path / "parts", sink=kill)
    resumed = run(tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(resumed), strict=True))
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    names = {row["name"] for row in rows[0]}
    assert {"test/box_ap", "test/mask_ap50", "train/loss"} <= names


def test_a_loss_that_is_no_number_stops_it(tmp_path: Path) -> None:
    own = module(DetectorKind.retinanet)
    plain = own.training_step
    own.training_step = lambda *batch: plain(*batch) * float("nan")  # type: ignore[method-assign]
    train = make_loader(DetectionSamples(scenes(), training=True), batch_size=5)
    test = make_loader(DetectionSamples(scenes(), training=False), batch_size=4)
    log = MetricLog(tmp_path / "metrics.jsonl", "task")
    settings = FitSettings(1, accelerator="cpu")
    with pytest.raises(NonFiniteError, match="the gradient of step 0 is nan"):
        fit(own, train, test, tmp_path, settings, log=log, seed=7, sink=lambda _: None)


@pytest.mark.parametrize("kind", [DetectorKind.retinanet, DetectorKind.mask_rcnn])
def test_it_trains_in_16_bits_with_clipped_gradients(tmp_path: Path, kind: DetectorKind) -> None:
    own = module(kind)
    train = make_loader(DetectionSamples(scenes(), training=True), batch_size=5)
    test = make_loader(DetectionSamples(scenes(), training=False), batch_size=4)
    log = MetricLog(tmp_path / "metrics.jsonl", "task")
    settings = FitSettings(1, accelerator="cpu", precision="bf16", clip_grad=1.0)
    fit(own, train, test, tmp_path, settings, log=log, seed=7, sink=lambda _: None)
    assert all(torch.isfinite(value).all() for value in own.parameters())


def test_layers_near_the_images_learn_at_lower_rates() -> None:
    own = module(DetectorKind.retinanet)
    groups = own.configure_optimizers()["optimizer"].param_groups
    rate = {id(p): group["scale"] for group in groups for p in group["params"]}
    model: Any = own.model
    backbone = model.backbone.maps.backbone
    assert rate[id(backbone.patch_embed.proj.weight)] == pytest.approx(0.8**3)
    assert rate[id(model.head.regression_head.bbox_reg.weight)] == 1.0
    assert rate[id(model.backbone.maps.branches[0].weight)] == 1.0


class Oracle(nn.Module):
    """Answers with the truth on the canvas; ``shift`` pixels to the right, with ``score``."""

    def __init__(self, data: DetectionData, shift: float = 0.0, masks: bool = False) -> None:
        super().__init__()
        self.samples = DetectionSamples(data, training=False)
        self.shift, self.place = shift, 0
        if masks:
            self.roi_heads = nn.Identity()
            self.roi_heads.has_mask = lambda: True  # type: ignore[assignment]

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        answers = []
        for _ in images:
            target = self.samples[SampleKey(0, self.place)].targets[0]
            self.place += 1
            count = len(target["boxes"])
            answer = {"boxes": target["boxes"].clone(), "labels": target["labels"]}
            answer["boxes"][:, 0::2] += self.shift
            answer["scores"] = torch.full((count,), 0.9)
            if hasattr(self, "roi_heads"):
                answer["masks"] = torch.ones(count, 1, 28, 28)
            answers.append(answer)
        return answers


def precision(data: DetectionData, oracle: Oracle) -> dict[str, float]:
    found = []
    for batch in make_loader(DetectionSamples(data, training=False), batch_size=3):
        found += detections(oracle, batch, data)
    return precision_metrics(data, found, oracle)


def test_the_truth_has_full_precision() -> None:
    metrics = precision(scenes(), Oracle(scenes()))
    assert metrics["test/box_ap"] == pytest.approx(1)
    assert metrics["test/box_ap75"] == pytest.approx(1)
    assert not any(name.startswith("test/mask") for name in metrics)
    assert "test/box_ap_large" not in metrics  # no scene of 32 pixels has such an object


def test_boxes_beside_their_objects_have_less() -> None:
    near = precision(scenes(), Oracle(scenes(), shift=3.0))
    far = precision(scenes(), Oracle(scenes(), shift=20.0))
    assert 1 > near["test/box_ap"] > far["test/box_ap"]
    assert near["test/box_ap50"] > near["test/box_ap75"]


def test_full_boxes_as_masks_are_not_the_objects() -> None:
    metrics = precision(scenes(), Oracle(scenes(), masks=True))
    assert metrics["test/box_ap"] == pytest.approx(1)
    assert 0 < metrics["test/mask_ap50"] < 1


def test_nothing_found_is_no_precision() -> None:
    metrics = precision_metrics(scenes(), [], nn.Identity())
    assert metrics["test/box_ap"] == 0


def test_answers_go_back_to_the_original_image() -> None:
    """A canvas of twice the scene's size, so that all is half as large in the original."""
    data = replace(scenes(), canvas=(2 * SIDE, 2 * SIDE), resize=ResizeRule(2 * SIDE, 2 * SIDE))
    answer = {
        "boxes": torch.tensor([[8.0, 16, 24, 48], [-4, 0, 20, 20], [70, 70, 90, 90]]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "labels": torch.tensor([1, 2, 3]),
        "masks": torch.ones(3, 1, 28, 28),
    }
    placed = in_original(answer, data, 0)
    assert placed["boxes"].tolist() == [[4, 8, 12, 24], [0, 0, 10, 10]]
    assert placed["labels"].tolist() == [1, 2]  # the third lies beside the image
    mask = placed["masks"][0]
    assert mask.shape == (SIDE, SIDE)
    assert mask[9:23, 5:11].all()
    assert not mask[:, 14:].any()
    assert precision(data, Oracle(data))["test/box_ap"] == pytest.approx(1)


def test_what_predicts_masks() -> None:
    assert predicts_masks(module(DetectorKind.mask_rcnn).model)
    assert not predicts_masks(module(DetectorKind.faster_rcnn).model)
    assert not predicts_masks(module(DetectorKind.retinanet).model)
