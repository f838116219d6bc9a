"""torchvision's detectors with FPN around any backbone, for images on one canvas.

Shapes: B batch, C channels of a map, H and W its height and width, O objects, D detections.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from triptych.backbones.feature_maps import FeatureMaps
from triptych.choices import DetectorKind
from triptych.config_detector import DetectorConfig

BOX_POOL, MASK_POOL = 7, 14
MASK_LAYERS = 4
GROUPS = 32
# The modules whose answers become boxes, scores and masks.
ANSWERING = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")


class OnCanvas(GeneralizedRCNNTransform):
    """In place of torchvision's transform: images lie normalised on the canvas already.

    Masks stay as they are predicted, 28 × 28 within their box: they are put into the original
    image, not onto the canvas.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def forward(
        self, images: Any, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        height, width = images.shape[2:]
        return ImageList(images, [(height, width)] * len(images)), targets

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        return result


class ExtraLevels(ExtraFPNBlock):
    """``count`` levels above FPN's last, each of half the size of the one below."""

    def __init__(self, count: int, channels: int, *, learned: bool) -> None:
        super().__init__()
        self.count = count
        convolutions = [nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(count * learned)]
        self.convolutions = nn.ModuleList(convolutions)
        for convolution in convolutions:
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        for number in range(self.count):
            last = results[-1]
            if len(self.convolutions):
                last = self.convolutions[number](F.relu(last) if number else last)
            else:
                last = F.max_pool2d(last, kernel_size=1, stride=2)
            results.append(last)
            names.append(f"extra{number}")
        return results, names


class PyramidBackbone(nn.Module):
    """Feature maps of a backbone, brought to one width by FPN, by name from fine to coarse."""

    def __init__(self, maps: FeatureMaps, settings: DetectorConfig) -> None:
        super().__init__()
        self.maps = maps
        self.out_channels = settings.channels
        learned = settings.kind is DetectorKind.retinanet
        extra = ExtraLevels(settings.extra_levels, settings.channels, learned=learned)
        self.fpn = FeaturePyramidNetwork(list(maps.widths), settings.channels, extra)
        self.names = [str(number) for number in range(len(maps.strides))]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        pairs = zip(self.names, self.maps(images), strict=True)
        return as_float32(self.fpn(OrderedDict(pairs)))


def as_float32(found: Any) -> Any:
    """Tensors of 16 bits in containers as float32.

    torchvision computes anchors in the type of the maps and boxes in that of the heads' answers;
    bfloat16 tells pixel 1,000 from 1,004 alone.
    """
    if isinstance(found, Tensor):
        return found.float() if found.dtype in (torch.bfloat16, torch.float16) else found
    if isinstance(found, dict):
        return type(found)((key, as_float32(value)) for key, value in found.items())
    return type(found)(as_float32(value) for value in found)


def _answer_in_float32(_module: nn.Module, _given: Any, found: Any) -> Any:
    return as_float32(found)


def build_detector(backbone: nn.Module, settings: DetectorConfig, num_classes: int) -> nn.Module:
    """The detector of ``settings`` around ``backbone``, whose modules it takes over.

    In training it maps (images (B, channels, *canvas), targets) to a dict of losses; in evaluation
    images to a list of B dicts with ``boxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), 1 … K, and
    for Mask R-CNN ``masks`` (D, 1, 28, 28), probabilities within each box.

    Args:
        num_classes: K, without the background.

    Raises:
        ValueError: the backbone gives no maps as coarse as ``settings.finest_stride``.
    """
    maps = FeatureMaps(backbone, settings.finest_stride)
    pyramid = PyramidBackbone(maps, settings)
    anchors = _anchors(maps.strides, settings)
    detector = _BUILDERS[settings.kind](pyramid, anchors, settings, num_classes + 1)
    detector.transform = OnCanvas()
    for name, module in detector.named_modules():
        if name in ANSWERING:
            module.register_forward_hook(_answer_in_float32)
    return detector


def backbone_of(detector: nn.Module) -> nn.Module:
    """The backbone that ``detector`` was built around."""
    model: Any = detector
    return model.backbone.maps.backbone


def _anchors(strides: tuple[int, ...], settings: DetectorConfig) -> AnchorGenerator:
    levels = [*strides, *(strides[-1] * 2 ** (n + 1) for n in range(settings.extra_levels))]
    octaves = [2 ** (n / settings.anchor_octaves) for n in range(settings.anchor_octaves)]
    sizes = tuple(
        tuple(settings.anchor_scale * stride * octave for octave in octaves) for stride in levels
    )
    return AnchorGenerator(sizes, (settings.aspect_ratios,) * len(sizes))


def _retinanet(
    pyramid: PyramidBackbone, anchors: AnchorGenerator, settings: DetectorConfig, classes: int
) -> RetinaNet:
    norm = partial(nn.GroupNorm, min(GROUPS, settings.channels // 4))
    head = RetinaNetHead(
        settings.channels,
        anchors.num_anchors_per_location()[0],
        classes,
        norm_layer=norm if settings.head_norm else None,
    )
    return RetinaNet(
        pyramid,
        classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=settings.score_threshold,
        detections_per_img=settings.detections,
    )


def _rcnn_parts(
    pyramid: PyramidBackbone, anchors: AnchorGenerator, settings: DetectorConfig, classes: int
) -> dict[str, Any]:
    return {
        "backbone": pyramid,
        "rpn_anchor_generator": anchors,
        "box_roi_pool": MultiScaleRoIAlign(pyramid.names, BOX_POOL, 2),
        "box_head": TwoMLPHead(settings.channels * BOX_POOL**2, settings.box_width),
        "box_predictor": FastRCNNPredictor(settings.box_width, classes),
        "box_batch_size_per_image": settings.box_samples,
        "box_score_thresh": settings.score_threshold,
        "box_detections_per_img": settings.detections,
    }


def _faster_rcnn(
    pyramid: PyramidBackbone, anchors: AnchorGenerator, settings: DetectorConfig, classes: int
) -> FasterRCNN:
    return FasterRCNN(**_rcnn_parts(pyramid, anchors, settings, classes))


def _mask_rcnn(
    pyramid: PyramidBackbone, anchors: AnchorGenerator, settings: DetectorConfig, classes: int
) -> MaskRCNN:
    width = settings.mask_width
    return MaskRCNN(
        **_rcnn_parts(pyramid, anchors, settings, classes),
        mask_roi_pool=MultiScaleRoIAlign(pyramid.names, MASK_POOL, 2),
        mask_head=MaskRCNNHeads(settings.channels, (width,) * MASK_LAYERS, 1),
        mask_predictor=MaskRCNNPredictor(width, width, classes),
    )


_BUILDERS: dict[DetectorKind, Any] = {
    DetectorKind.retinanet: _retinanet,
    DetectorKind.faster_rcnn: _faster_rcnn,
    DetectorKind.mask_rcnn: _mask_rcnn,
}
