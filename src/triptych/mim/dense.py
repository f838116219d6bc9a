"""SimMIM's encoder: the whole backbone, with a mask token in place of hidden patches.

Shapes: B batch, L mask units, F feature cells of the last stage, C channels, T tokens of the first
stage's grid (down, across).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from timm.models import checkpoint_seq
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from triptych.mim.encoder import check_patch_embedding


class DenseMaskedEncoder(nn.Module):
    """Standard masked image modelling (SimMIM, Xie et al., CVPR 2022, arXiv 2111.09886).

    The embeddings of hidden patches are replaced by a learned token before positions are added
    and any block runs; then every token passes through the backbone.

    Args:
        backbone: timm's SwinTransformer or VisionTransformer.
        unit: side of a mask unit in pixels; a token of the last stage if None.

    Raises:
        ValueError: another backbone, or a unit that is no multiple of the patch or does not
            divide the image.
    """

    def __init__(self, backbone: nn.Module, unit: int | None = None) -> None:
        super().__init__()
        if type(backbone) not in _FEATURES:
            names = ", ".join(kind.__name__ for kind in _FEATURES)
            raise ValueError(
                f"no dense masked encoder for {type(backbone).__name__}; there is one for timm's "
                f"{names}"
            )
        embed = check_patch_embedding(backbone)
        self.backbone = backbone
        self.patch = embed.patch_size[0]
        stages = len(backbone.layers) if isinstance(backbone, SwinTransformer) else 1
        self.stride = self.patch * 2 ** (stages - 1)
        self.unit = self.stride if unit is None else unit
        height, width = embed.img_size
        if self.unit % self.patch or height % self.unit or width % self.unit:
            raise ValueError(
                f"mask unit of {self.unit} pixels must be a multiple of the patch of {self.patch} "
                f"and divide the image of {height}x{width}"
            )
        self.unit_grid = (height // self.unit, width // self.unit)
        self.feature_grid = (height // self.stride, width // self.stride)
        self.mask_token = nn.Parameter(torch.zeros(embed.proj.out_channels))
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


def _swin_features(
    model: SwinTransformer, images: Tensor, hidden: Tensor, token_C: Tensor
) -> Tensor:
    x_BHWC = model.patch_embed(images)
    x_BHWC = torch.where(hidden[..., None], token_C.to(x_BHWC.dtype), x_BHWC)
    return model.norm(model.layers(x_BHWC)).flatten(1, 2)


def _vit_features(
    model: VisionTransformer, images: Tensor, hidden: Tensor, token_C: Tensor
) -> Tensor:
    x = model.patch_embed(images)  # (B, H, W, C) if timm's image size is dynamic, else (B, N, C)
    hidden = hidden if x.ndim == 4 else hidden.flatten(1)
    x = torch.where(hidden[..., None], token_C.to(x.dtype), x)
    x_BNC = model.norm_pre(model.patch_drop(model._pos_embed(x)))
    run = partial(checkpoint_seq, model.blocks) if model.grad_checkpointing else model.blocks
    return model.norm(run(x_BNC))[:, model.num_prefix_tokens :]


_FEATURES: dict[type[nn.Module], Callable[..., Tensor]] = {
    SwinTransformer: _swin_features,
    VisionTransformer: _vit_features,
}
