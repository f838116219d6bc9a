"""Features of whole images, with a token in place of hidden patches, for each backbone.

Every function takes the model, images (B, channels, H, W), ``hidden`` bool (B or 1, rows, columns)
on the first stage's token grid, and the token (C,); it gives (B, F, C'), the F cells of the last
stage in row-major order. Images may have another size than the model was built for.

Shapes: B batch, N tokens of a stage, C channels.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, cast

import torch
from timm.models import checkpoint_seq
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from triptych.backbones.released_pvt import ReleasedPvt
from triptych.mim.swin import VisibleSwin
from triptych.mim.token_plan import MaskPlan, StageShape, plan_mask
from triptych.mim.windows import Lattice, Pair


def swin_features(
    model: SwinTransformer, images: Tensor, hidden: Tensor, token_C: Tensor
) -> Tensor:
    """timm's own blocks at the size that they were built for, else windows planned for the grid."""
    embed = cast(Any, model.patch_embed)
    height, width = images.shape[2:]
    if (height, width) == tuple(embed.img_size):
        x_BHWC = _put(embed(images), hidden, token_C)
        return model.norm(model.layers(x_BHWC)).flatten(1, 2)
    x_BHWC = embed.norm(embed.proj(images).permute(0, 2, 3, 1))
    encoder = VisibleSwin(model, Lattice.published)
    unit_grid = height // encoder.unit, width // encoder.unit
    plan = _plan_whole(unit_grid, encoder.stage_shapes((height, width)), images.device)
    return encoder.run_stages(_put(x_BHWC, hidden, token_C).flatten(1, 2), plan)[-1]


@lru_cache(maxsize=8)
def _plan_whole(unit_grid: Pair, stages: tuple[StageShape, ...], device: torch.device) -> MaskPlan:
    """The plan of a grid of which nothing is hidden."""
    nothing = torch.zeros(1, unit_grid[0] * unit_grid[1], dtype=torch.bool)
    return plan_mask(nothing, unit_grid, stages, Lattice.published).to(device)


def vit_features(
    model: VisionTransformer, images: Tensor, hidden: Tensor, token_C: Tensor
) -> Tensor:
    """Of the patches; prefix tokens take part and are left out of the result."""
    x = model.patch_embed(images)  # (B, H, W, C) if timm's image size is dynamic, else (B, N, C)
    x = _put(x, hidden if x.ndim == 4 else hidden.flatten(1), token_C)
    x_BNC = model.norm_pre(model.patch_drop(model._pos_embed(x)))
    run = partial(checkpoint_seq, model.blocks) if model.grad_checkpointing else model.blocks
    return model.norm(run(x_BNC))[:, model.num_prefix_tokens :]


def twins_features(model: Twins, images: Tensor, hidden: Tensor, token_C: Tensor) -> Tensor:
    """Twins-SVT and Twins-PCPVT; their convolutions give positions on a grid of any size."""
    x, size = images, (0, 0)
    for number, blocks in enumerate(cast(Any, model.blocks)):
        if number:
            x = x.transpose(1, 2).unflatten(2, size)
        x, size = model.patch_embeds[number](x)
        x = model.pos_drops[number](_put(x, hidden.flatten(1), token_C) if number == 0 else x)
        for position, block in enumerate(blocks):
            x = block(x, size)
            if position == 0:
                x = model.pos_block[number](x, size)
    return model.norm(x)


def pvt_v2_features(
    model: PyramidVisionTransformerV2, images: Tensor, hidden: Tensor, token_C: Tensor
) -> Tensor:
    """Its first patches overlap, so hidden pixels are zero as well."""
    side = images.shape[2] // hidden.shape[1]
    pixels = hidden.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
    x_BHWC = model.patch_embed(images.masked_fill(pixels, 0.0))
    x = model.stages(_put(x_BHWC, hidden, token_C))
    return x.flatten(2).transpose(1, 2)


def pvt_features(model: ReleasedPvt, images: Tensor, hidden: Tensor, token_C: Tensor) -> Tensor:
    """PVT v1; position embeddings of another grid are interpolated."""
    x: Tensor = images
    last = len(model.grids)
    for stage in range(1, last + 1):
        embed = model.get_submodule(f"patch_embed{stage}")
        grid = images.shape[2] // hidden.shape[1] * 2 ** (stage - 1)
        size = images.shape[2] // grid, images.shape[3] // grid
        x_BNC = embed(x)
        if stage == 1:
            x_BNC = _put(x_BNC, hidden.flatten(1), token_C)
        if stage == last:
            x_BNC = torch.cat((model.cls_token.expand(len(x), -1, -1), x_BNC), 1)
        table = model.get_parameter(f"pos_embed{stage}")
        x_BNC = x_BNC + _resize(table, model.grids[stage - 1], size)
        for block in model.get_submodule(f"block{stage}").children():
            x_BNC = block(x_BNC, size)
        if stage < last:
            x = x_BNC.transpose(1, 2).unflatten(2, size)
    return model.norm(x_BNC)[:, 1:]


def _resize(table_1TC: Tensor, grid: Pair, size: Pair) -> Tensor:
    """Positions of ``grid`` for one of ``size``, bicubic; class tokens in front stay."""
    if grid == size:
        return table_1TC
    prefix = table_1TC.shape[1] - grid[0] * grid[1]
    maps = table_1TC[:, prefix:].transpose(1, 2).unflatten(2, grid)
    resized = F.interpolate(maps, size, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat((table_1TC[:, :prefix], resized.flatten(2).transpose(1, 2)), 1)


def _put(x: Tensor, hidden: Tensor, token_C: Tensor) -> Tensor:
    """``x`` (B, ..., C) with the token where ``hidden`` (B or 1, ...)."""
    return torch.where(hidden[..., None], token_C.to(x.dtype), x)
