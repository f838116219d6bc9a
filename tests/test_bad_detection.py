"""What a user reads when a detector cannot be trained, before any work."""

from __future__ import annotations

import pytest

from triptych.config import ConfigError
from triptych.hydra_app import compose_run

SCENES = ["data=scenes", "task=detection"]
COCO = ["data=coco", "data.root=/data/coco"]
BAD = [
    (
        ["task.detector.kind=mask_rcnn"],
        "task.detector.kind=mask_rcnn has no meaning for task=classification, only for detection.",
    ),
    (
        [*SCENES, "task.mixup=0.5"],
        "task.mixup=0.5 has no meaning for task=detection; leave it 0.",
    ),
    (
        [*SCENES, "task.label_fraction=0.5"],
        "task.label_fraction=0.5 has no meaning for task=detection; leave it 1.",
    ),
    (
        [*SCENES, "task.detector.finest_stride=16"],
        "task.detector.finest_stride=16 leaves no feature map of backbone=swin_nano, whose "
        "coarsest has a stride of 8; give that or less.",
    ),
    (
        [*SCENES, "backbone=levit_nano", "data.image_size=72"],
        "data.image_size=72 is not a multiple of 16, the stride of the coarsest feature map of "
        "backbone=levit_nano; the nearest legal sizes are 64 and 80.",
    ),
    (
        [*SCENES, "task.detector.channels=66"],
        "task.detector.channels=66 does not come apart into 16 groups for task.detector.head_norm; "
        "the nearest legal are 64 and 80.",
    ),
    (
        [*SCENES, "task.detector.aspect_ratios=[]"],
        "task.detector.aspect_ratios=[] leaves no anchor; give some, for example [0.5,1,2].",
    ),
    (
        [*SCENES, "task.detector.aspect_ratios=[1,0]"],
        "task.detector.aspect_ratios=0 is out of range: it must be more than 0.",
    ),
    (
        [*SCENES, "task.detector.score_threshold=1"],
        "task.detector.score_threshold=1 is out of range: it must be in [0, 1).",
    ),
    (
        [*SCENES, "task.detector.kind=yolo"],
        "task.detector.kind=yolo is not a choice: legal are retinanet, faster_rcnn, mask_rcnn.",
    ),
    (
        [*SCENES, "task.detector.chanels=32"],
        "task.detector.chanels is not a key: the group task.detector has kind, finest_stride, "
        "channels, extra_levels, anchor_scale, anchor_octaves, aspect_ratios, head_norm, "
        "box_width, mask_width, box_samples, score_threshold, detections; did you mean channels?",
    ),
    (
        [*SCENES, "trainer=fsdp", "trainer.devices=2"],
        "trainer.strategy=fsdp cannot be used with task=detection, whose heads are not cut into "
        "pieces; use trainer=ddp.",
    ),
    (
        [*SCENES, "trainer.compile=true"],
        "trainer.compile=True has no meaning for task=detection: what a detector computes depends "
        "on what it finds; leave it False.",
    ),
    (
        [*COCO, "task=detection_mask_rcnn_1x", "backbone=swin_tiny", "trainer=ddp"],
        "trainer.devices has no value, but the result depends on it: each device draws its own "
        "proposals for task.detector.kind=mask_rcnn; give it, for example trainer.devices=8.",
    ),
    (
        [*COCO, "task=detection_retinanet_1x", "backbone=bigbird_nano"],
        "backbone=bigbird_nano reads token sequences, but data=coco holds images; use "
        "data=listops_short or listops with task=listops, or an image backbone.",
    ),
]


@pytest.mark.parametrize(("overrides", "sentence"), BAD, ids=lambda value: str(value)[:50])
def test_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        compose_run(overrides)
    assert str(refusal.value) == sentence
