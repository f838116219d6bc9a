"""The schema of ``task.detector``."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.choices import DetectorKind


@dataclass(frozen=True)
class DetectorConfig:
    """The detector of ``task=detection``, but for its backbone.

    What each key means is told at :class:`triptych.tasks.detectors.DetectorSettings`.
    """

    kind: DetectorKind = DetectorKind.retinanet
    finest_stride: int = 4
    channels: int = 256
    extra_levels: int = 1
    anchor_scale: float = 4.0
    anchor_octaves: int = 3
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    head_norm: bool = False
    box_width: int = 1024
    mask_width: int = 256
    box_samples: int = 512
    score_threshold: float = 0.05
    detections: int = 100


PLAIN_DETECTOR = DetectorConfig()
