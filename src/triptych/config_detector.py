"""The schema of ``task.detector``."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.choices import DetectorKind


@dataclass(frozen=True)
class DetectorConfig:
    """The detector of ``task=detection``, but for its backbone; the defaults are published ones.

    Attributes:
        kind: RetinaNet (Lin et al. 2017), Faster R-CNN (Ren et al. 2015) with FPN, or Mask R-CNN
            (He et al. 2017), which predicts masks too.
        finest_stride: of the feature maps that FPN begins with.
        channels: of FPN, and of RetinaNet's heads.
        extra_levels: levels above the backbone's maps, each of twice the stride: strided
            convolutions for RetinaNet, max-pooling for the others.
        anchor_scale: side of the smallest anchor of a level, in its strides.
        anchor_octaves: anchor sizes in an octave.
        aspect_ratios: of anchors, height over width.
        head_norm: group normalisation in RetinaNet's heads, which narrow ones need: they begin
            with weights of 0.01.
        box_width: of the two layers of the box head (R-CNN).
        mask_width: of the mask head (Mask R-CNN).
        box_samples: proposals of an image that the box head learns from in a step (R-CNN).
        score_threshold: what is found with less confidence is dropped.
        detections: most detections of an image.
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
