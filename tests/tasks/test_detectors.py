"""Detectors around backbones: their levels, anchors, losses and answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from triptych.backbones.build import BackboneSpec, Family, build_backbone
from triptych.choices import DetectorKind
from triptych.config_detector import DetectorConfig
from triptych.norms import replace_norms
from triptych.tasks.detectors import (
    ExtraLevels,
    OnCanvas,
    backbone_of,
    build_detector,
)

SIDE = 32
KINDS = tuple(DetectorKind)
NARROW = DetectorConfig(
    finest_stride=4, channels=16, anchor_scale=2.0, head_norm=True,
    box_width=16, mask_width=8, box_samples=16,
)  # fmt: skip
SWIN = BackboneSpec(Family.swin, 16, (1, 1), (1, 2), window_size=4, initialization="xavier")
VIT = BackboneSpec(Family.vit, 16, (2,), (2,), patch_size=8, initialization="xavier")


def detector(
    kind: DetectorKind, spec: BackboneSpec = SWIN, norm: str = "ln", **changed: Any
) -> nn.Module:
    torch.manual_seed(0)
    size = (SIDE, SIDE)
    backbone = build_backbone(spec, image_size=size, channels=1, num_classes=3)
    if norm != "ln":
        replace_norms(backbone, norm, image_size=size)
    return build_detector(backbone, replace(NARROW, kind=kind, **changed), num_classes=3)


def batch() -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Two images with a bright rectangle each, and one of the two with a second one."""
    images = torch.zeros(2, 1, SIDE, SIDE)
    boxes = [torch.tensor([[4.0, 6, 20, 22]]), torch.tensor([[2.0, 2, 12, 14], [16, 16, 30, 28]])]
    targets = []
    for image, own in zip(images, boxes, strict=True):
        masks = torch.zeros(len(own), SIDE, SIDE, dtype=torch.bool)
        for number, (left, top, right, bottom) in enumerate(own.int().tolist()):
            masks[number, top:bottom, left:right] = True
            image[0, top:bottom, left:right] = 1.0 + number
        targets.append({"boxes": own, "labels": torch.arange(len(own)) + 1, "masks": masks})
    return images, targets


def test_nothing_is_done_to_images_on_the_canvas() -> None:
    images, targets = batch()
    listed, same = OnCanvas()(images, targets)
    assert listed.tensors is images
    assert listed.image_sizes == [(SIDE, SIDE)] * 2
    assert same is targets


def test_it_equals_torchvisions_transform_that_has_nothing_to_do() -> None:
    """The same losses as with torchvision's own, told to keep sizes and values."""
    images, targets = batch()
    model: Any = detector(DetectorKind.retinanet)
    ours = model(images, targets)
    model.transform = GeneralizedRCNNTransform(
        SIDE, SIDE, [0.0], [1.0], size_divisible=1, fixed_size=(SIDE, SIDE)
    )
    theirs = model(list(images), targets)
    for name, loss in ours.items():
        torch.testing.assert_close(loss, theirs[name])


@pytest.mark.parametrize("norm", ["ln", "dtn"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind: DetectorKind, norm: str) -> None:
    model = detector(kind, norm=norm).train()
    losses = model(*batch())
    torch.stack(list(losses.values())).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())


@pytest.mark.parametrize("kind", KINDS)
def test_answers_have_their_form(kind: DetectorKind) -> None:
    model = detector(kind, score_threshold=0.0).eval()
    with torch.no_grad():
        answers = model(batch()[0])
    assert len(answers) == 2
    for answer in answers:
        count = len(answer["boxes"])
        assert 0 < count <= NARROW.detections
        assert answer["boxes"].shape == (count, 4)
        assert answer["boxes"].min() >= 0
        assert answer["boxes"].max() <= SIDE
        assert set(answer["labels"].tolist()) <= {0, 1, 2, 3}
        if kind == "mask_rcnn":
            assert answer["masks"].shape == (count, 1, 28, 28)
        else:
            assert "masks" not in answer


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_told_apart_in_16_bits(kind: DetectorKind) -> None:
    """Anchors and boxes stay in 32 bits: half a pixel would be lost at 512."""
    model: Any = detector(kind, score_threshold=0.0).eval()
    images, targets = batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        answers = model(images)
        levels = list(model.backbone(images).values())
        losses = model.train()(images, targets)
    assert {level.dtype for level in levels} == {torch.float32}
    assert {answer["boxes"].dtype for answer in answers} == {torch.float32}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    rounded = [answer["boxes"].bfloat16().float() for answer in answers]
    pairs = zip(rounded, answers, strict=True)
    assert not any(torch.equal(boxes, answer["boxes"]) for boxes, answer in pairs)


def test_anchors_grow_with_the_strides() -> None:
    model: Any = detector(
        DetectorKind.retinanet, anchor_scale=2.0, anchor_octaves=2, extra_levels=1
    )
    sizes = model.anchor_generator.sizes
    assert sizes == tuple((2 * s, 2 * s * 2**0.5) for s in (4, 8, 16))
    rcnn: Any = detector(DetectorKind.faster_rcnn, anchor_scale=8.0, anchor_octaves=1)
    assert rcnn.rpn.anchor_generator.sizes == ((32.0,), (64.0,), (128.0,))


def test_anchors_cover_the_canvas() -> None:
    model: Any = detector(DetectorKind.retinanet)
    images = ImageList(batch()[0], [(SIDE, SIDE)] * 2)
    levels = list(model.backbone(images.tensors).values())
    assert [tuple(level.shape[2:]) for level in levels] == [(8, 8), (4, 4), (2, 2)]
    (anchors, _) = model.anchor_generator(images, levels)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    per_place = 9
    assert len(anchors) == per_place * (64 + 16 + 4)
    assert centres[: per_place * 64].max() == SIDE - 4


def test_a_plain_backbone_has_a_pyramid() -> None:
    model: Any = detector(DetectorKind.retinanet, VIT, extra_levels=2)
    levels = model.backbone(batch()[0])
    assert [level.shape[-1] for level in levels.values()] == [8, 4, 2, 1, 1]


def test_a_head_of_eight_octaves_of_channels() -> None:
    wide: Any = detector(DetectorKind.retinanet, channels=64, head_norm=True)
    groups = {m.num_groups for m in wide.head.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {16}
    plain: Any = detector(DetectorKind.retinanet, head_norm=False)
    assert not any(isinstance(m, nn.GroupNorm) for m in plain.head.modules())


@pytest.mark.parametrize(("learned", "parameters"), [(True, 2), (False, 0)])
def test_extra_levels(learned: bool, parameters: int) -> None:
    extra = ExtraLevels(2, 4, learned=learned)
    assert len(list(extra.parameters())) == 2 * parameters
    results, names = extra([torch.randn(1, 4, 6, 6)], [], ["0"])
    assert [tuple(one.shape[2:]) for one in results] == [(6, 6), (3, 3), (2, 2)]
    assert names == ["0", "extra0", "extra1"]


def test_the_backbone_is_the_one_given() -> None:
    backbone = build_backbone(SWIN, image_size=(SIDE, SIDE), channels=1, num_classes=3)
    assert backbone_of(build_detector(backbone, NARROW, 3)) is backbone


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_two_images(kind: DetectorKind) -> None:
    """After some steps the boxes of both images are found, with their classes."""
    model = detector(kind).train()
    images, targets = batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(120):
        torch.manual_seed(step)  # R-CNN draws proposals
        losses = model(images, targets)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        answers = model.eval()(images)
    for answer, target in zip(answers, targets, strict=True):
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            near = (answer["boxes"] - box).abs().amax(1) < 3
            right = near & (answer["labels"] == label) & (answer["scores"] > 0.5)
            assert right.any(), (kind, box, answer)
