"""SimMIM's encoder: the whole backbone, with a mask token in place of hidden patches.

Shapes: B batch, L mask units, F feature cells of the last stage, C channels, T tokens of the first
stage's grid (down, across).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from triptych.backbones.released_pvt import ReleasedPvt
from triptych.mim.dense_features import (
    pvt_features,
    pvt_v2_features,
    swin_features,
    twins_features,
    vit_features,
)
from triptych.mim.layout import KNOWN, layout_of, require_image_size, resolve_image_size
from triptych.mim.windows import Pair


class DenseMaskedEncoder(nn.Module):
    """Standard masked image modelling (SimMIM, Xie et al., CVPR 2022, arXiv 2111.09886).

    The embeddings of hidden patches are replaced by a learned token before positions are added
    and any block runs; then every token passes through the backbone. Patches that overlap (PVT
    v2) would see hidden pixels, so these are set to 0 first.

    Args:
        backbone: timm's SwinTransformer, VisionTransformer, Twins or PyramidVisionTransformerV2,
            or a ReleasedPvt.
        unit: side of a mask unit in pixels; a token of the last stage if None.
        image_size: (height, width) in pixels, for a PVT v2, which does not know it.
        resized: take ``image_size`` also where the backbone was built for another. Windows of a
            Swin then lie as :data:`~triptych.mim.windows.Lattice.published` says, and positions
            of a ReleasedPvt are interpolated; a ViT has no such way.

    Raises:
        ValueError: another backbone, a size that is unknown or does not fit, or a unit that is
            no multiple of the patch or does not divide the image.
    """

    def __init__(
        self,
        backbone: nn.Module,
        unit: int | None = None,
        image_size: Pair | None = None,
        *,
        resized: bool = False,
    ) -> None:
        super().__init__()
        if type(backbone) not in _FEATURES:
            raise ValueError(
                f"no dense masked encoder for {type(backbone).__name__}; there is one for {KNOWN}"
            )
        layout = layout_of(backbone)
        if resized and type(backbone) is not VisionTransformer:
            layout = replace(layout, fixed=False)
        self.backbone = backbone
        self.patch, self.stride = layout.patch, layout.stride
        self.unit = self.stride if unit is None else unit
        height, width = require_image_size(resolve_image_size(layout, image_size), backbone)
        if self.unit % self.patch or height % self.unit or width % self.unit:
            raise ValueError(
                f"mask unit of {self.unit} pixels must be a multiple of the patch of {self.patch} "
                f"and divide the image of {height}x{width}"
            )
        self.unit_grid = (height // self.unit, width // self.unit)
        self.feature_grid = (height // self.stride, width // self.stride)
        self.mask_token = nn.Parameter(torch.zeros(layout.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Features (B, F, C) of all cells of the last stage, in row-major order.

        Args:
            images: (B, channels, height, width).
            mask: bool (L,) or (B, L), True = hidden, units in row-major order.

        Raises:
            ValueError: the mask is not bool or has another shape.
        """
        units = self.unit_grid[0] * self.unit_grid[1]
        if mask.dtype != torch.bool or mask.shape not in ((units,), (len(images), units)):
            raise ValueError(
                f"mask must be bool with shape ({units},) or ({len(images)}, {units}), got "
                f"{mask.dtype} {tuple(mask.shape)}"
            )
        repeat = self.unit // self.patch
        hidden = mask.to(images.device).view(-1, *self.unit_grid)
        hidden = hidden.repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)
        return _FEATURES[type(self.backbone)](self.backbone, images, hidden, self.mask_token)


_FEATURES: dict[type[nn.Module], Callable[..., Tensor]] = {
    SwinTransformer: swin_features,
    VisionTransformer: vit_features,
    Twins: twins_features,
    ReleasedPvt: pvt_features,
    PyramidVisionTransformerV2: pvt_v2_features,
}
