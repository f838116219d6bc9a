"""Images of any size, resized and laid on one fixed canvas; and the way back.

Every image is resized by the published rule and laid into the upper left corner of a canvas of one
size, the rest of which is 0 after normalisation (the mean). So a backbone with a fixed token grid
(DTN's position weights, learned position embeddings) and windows of any size are exact on every
image, and all batches have one shape.

Shapes: O objects, C channels, H and W canvas, h and w image in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ResizeRule:
    """The short side becomes ``short_side``, unless the long one would pass ``long_side``.

    ``training_sides``: short sides among which each training image draws one anew in every epoch
    (multi-scale); where it is empty, training images are resized as test images are.
    """

    short_side: int
    long_side: int
    training_sides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for side in (self.short_side, *self.training_sides):
            if not 1 <= side <= self.long_side:
                raise ValueError(
                    f"a short side must be in 1 … {self.long_side}, the long side, got {side}"
                )

    def size(self, height: int, width: int, short_side: int | None = None) -> tuple[int, int]:
        """Height and width of an image (h, w) after resizing; the ratio is kept to rounding."""
        short = self.short_side if short_side is None else short_side
        scale = min(short / min(height, width), self.long_side / max(height, width))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def lay_image(
    image_Chw: Tensor, size: tuple[int, int], canvas_CHW: Tensor, *, flipped: bool = False
) -> None:
    """Write a float image (C, h, w), resized to ``size``, into the upper left of a canvas.

    Bilinear, with antialiasing where it shrinks; an image that has the size already keeps its
    values. ``flipped``: left and right changed over, before it is laid down.
    """
    height, width = size
    _check_fits(size, (canvas_CHW.shape[1], canvas_CHW.shape[2]))
    if tuple(image_Chw.shape[1:]) != size:
        image_Chw = F.interpolate(image_Chw[None], size, mode="bilinear", antialias=True)[0]
    canvas_CHW[:, :height, :width] = image_Chw.flip(2) if flipped else image_Chw


def lay_boxes(
    boxes_O4: Tensor, former: tuple[int, int], size: tuple[int, int], *, flipped: bool = False
) -> Tensor:
    """Boxes (left, top, right, bottom) of an image (h, w) ``former`` as they lie on the canvas."""
    factors = _factors(former, size, boxes_O4)
    boxes_O4 = boxes_O4 * factors
    if flipped:
        left, top, right, bottom = boxes_O4.unbind(1)
        boxes_O4 = torch.stack([size[1] - right, top, size[1] - left, bottom], dim=1)
    return boxes_O4


def lay_masks(
    masks_Ohw: Tensor, size: tuple[int, int], canvas: tuple[int, int], *, flipped: bool = False
) -> Tensor:
    """Bool masks (O, h, w) of an image as they lie on the canvas (O, H, W); nearest pixel."""
    height, width = size
    _check_fits(size, canvas)
    laid = torch.zeros(len(masks_Ohw), *canvas, dtype=torch.bool)
    if flipped:
        masks_Ohw = masks_Ohw.flip(2)
    laid[:, :height, :width] = _resized_masks(masks_Ohw, size)
    return laid


def boxes_to_original(boxes_O4: Tensor, original: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Boxes in canvas pixels as boxes of the image (h, w) ``original``, cut at its edges.

    ``size`` is what :meth:`ResizeRule.size` gave for the image.
    """
    boxes_O4 = boxes_O4 / _factors(original, size, boxes_O4)
    height, width = original
    limits = boxes_O4.new_tensor([width, height, width, height])
    return torch.minimum(boxes_O4.clamp_min(0), limits)


def masks_to_original(
    masks_OHW: Tensor, original: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Masks on the canvas (O, H, W) as masks of the image, (O, h, w); see the above for ``size``.

    Bool masks take the nearest pixel; probabilities (float) are interpolated.
    """
    placed = masks_OHW[:, : size[0], : size[1]]
    if not placed.is_floating_point():
        return _resized_masks(placed, original)
    if size == original:
        return placed
    return F.interpolate(placed[:, None], original, mode="bilinear", antialias=True)[:, 0]


def _resized_masks(masks_Ohw: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(masks_Ohw.shape[1:]) == size:
        return masks_Ohw
    bytes_O1hw = masks_Ohw[:, None].to(torch.uint8)
    return F.interpolate(bytes_O1hw, size, mode="nearest-exact")[:, 0].bool()


def _factors(former: tuple[int, int], size: tuple[int, int], like: Tensor) -> Tensor:
    across, down = size[1] / former[1], size[0] / former[0]
    return like.new_tensor([across, down, across, down])


def _check_fits(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    if size[0] > canvas[0] or size[1] > canvas[1]:
        raise ValueError(
            f"an image of {size[0]} × {size[1]} pixels does not fit on a canvas of "
            f"{canvas[0]} × {canvas[1]}"
        )
