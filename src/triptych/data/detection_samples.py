"""Images with objects as they enter a detector: resized, flipped, normalised, on the canvas.

Shapes: B batch, O objects of an image, C channels, H and W canvas in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from triptych.data.canvas import lay_boxes, lay_image, lay_masks
from triptych.data.detection import DetectionData
from triptych.data.samples import SampleKey
from triptych.seeding import uniforms

Target = dict[str, Tensor]


class DetectionBatch(NamedTuple):
    """Images on the canvas with what is to be found in them.

    Attributes:
        images: float32 (B, C, H, W), normalised.
        targets: of each image ``boxes`` float32 (O, 4), ``labels`` int64 (O,) and ``masks`` bool
            (O, H, W), in canvas pixels; O may be 0 in test images. Without masks asked for there
            is no key ``masks``.
        indices: int64 (B,), positions in the split.
    """

    images: Tensor
    targets: list[Target]
    indices: Tensor


class DetectionSamples(Dataset[DetectionBatch]):
    """One split as batches; what a key gives is a pure function of (seed, epoch, index).

    Training images are flipped and drawn at one of several sizes where ``data`` says so; nothing
    else is changed.

    Args:
        data: the images and their rules.
        training: the training images, augmented; otherwise the test images as they are.
        seed: of the augmentation.
        masks: whether the targets have masks.
    """

    def __init__(
        self, data: DetectionData, *, training: bool, seed: int = 0, masks: bool = True
    ) -> None:
        self.data, self.seed, self.masks = data, seed, masks
        self.training = training
        self.split = data.train if training else data.test
        self.mean = torch.tensor(data.mean)[:, None, None]
        self.std = torch.tensor(data.std)[:, None, None]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey) -> DetectionBatch:
        """One sample, still with a batch dimension."""
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[SampleKey]) -> DetectionBatch:
        images_BCHW = torch.zeros(len(keys), self.data.channels, *self.data.canvas)
        pairs = zip(keys, images_BCHW, strict=True)
        targets = [self._lay(SampleKey(*key), canvas) for key, canvas in pairs]
        indices_B = torch.tensor([index for _, index in keys], dtype=torch.int64)
        return DetectionBatch(images_BCHW, targets, indices_B)

    def _lay(self, key: SampleKey, canvas_CHW: Tensor) -> Target:
        """Write the image into its canvas; what is to be found there."""
        flipped, side = self._draw(key)
        former = self.split.size(key.index)
        size = self.data.resize.size(*former, side)
        image = (self.split.images[key.index].float() / 255 - self.mean) / self.std
        lay_image(image, size, canvas_CHW, flipped=flipped)
        objects = self.split.objects(key.index, masks=self.masks)
        target = {
            "boxes": lay_boxes(objects.boxes, former, size, flipped=flipped),
            "labels": objects.labels,
        }
        if self.masks:
            target["masks"] = lay_masks(objects.masks, size, self.data.canvas, flipped=flipped)
        return target

    def _draw(self, key: SampleKey) -> tuple[bool, int]:
        """Whether the image is flipped, and its short side."""
        rule = self.data.resize
        if not self.training:
            return False, rule.short_side
        u_flip, u_side = uniforms(self.seed, [key.epoch], [key.index], 2)[0]
        sides = rule.training_sides or (rule.short_side,)
        return bool(u_flip < self.data.flip), sides[int(u_side * len(sides))]
