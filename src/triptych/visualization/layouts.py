"""The layout of a backbone: where each of its blocks lies. Nothing is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from timm.models.levit import Levit
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.twins import Twins
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from triptych.backbones.released_pvt import ReleasedPvt
from triptych.backbones.released_vit import ReleasedViT
from triptych.backbones.t2t_vit import T2TViT
from triptych.visualization.block_layout import BackboneLayout, BlockLayout, pair
from triptych.visualization.pyramid_layouts import (
    levit_layout,
    pvt_layout,
    pvt_v2_layout,
    swin_layout,
    twins_layout,
)
from triptych.visualization.stage_reduction import Pair, Reduction


def backbone_layout(model: nn.Module, image_size: Pair) -> BackboneLayout:
    """The layout of ``model`` for images of ``image_size`` = (height, width) pixels.

    Raises:
        ValueError: no backbone that is known here.
    """
    for kind, layout in _LAYOUTS:
        if isinstance(model, kind):
            return layout(model, image_size)
    names = [kind.__name__ for kind, _ in _LAYOUTS]
    raise ValueError(
        f"cannot capture a {type(model).__name__}; give one of "
        f"{', '.join(names[:-1])} or {names[-1]}"
    )


def _vit(model: Any, size: Pair) -> BackboneLayout:
    patch = pair(model.patch_embed.patch_size)
    grid = pair(model.patch_embed.dynamic_feat_size(size))
    blocks = _plain(model, grid, patch, [int(model.num_prefix_tokens)] * len(model.blocks))
    # A class token counts unless the head averages over the grid and leaves it unread.
    reads = model.cls_token is not None and model.global_pool not in ("avg", "avgmax", "max")
    return BackboneLayout(tuple(blocks), reads)


def _released_vit(model: Any, size: Pair) -> BackboneLayout:
    patch, grid = pair(model.patch_embed.patch_size), pair(model.patch_embed.grid_size)
    prefix = [int(index >= model.class_token_at) for index in range(len(model.blocks))]
    return BackboneLayout(tuple(_plain(model, grid, patch, prefix)), reads_class_token=True)


def _t2t_vit(model: Any, size: Pair) -> BackboneLayout:
    """The tokens-to-token stages are stages of their own; each begins with a soft split."""
    module, blocks = model.tokens_to_token, []
    supports = [
        Reduction(pair(split.kernel_size), pair(split.stride), pair(split.padding))
        for split in module.splits
    ]
    strides = [
        (
            math.prod(one.stride[0] for one in supports[: number + 1]),
            math.prod(one.stride[1] for one in supports[: number + 1]),
        )
        for number in range(len(supports))
    ]
    for number, block in enumerate(module.stages):
        blocks.append(
            BlockLayout(
                name=f"tokens_to_token.stages.{number}",
                block=block,
                attention=block.attn,
                stage=number,
                grid=pair(module.grids[number]),
                stride=strides[number],
                reduction=supports[number] if number else None,
            )
        )
    prefix = [int(index >= model.class_token_at) for index in range(len(model.blocks))]
    stage = len(supports) - 1
    reduction = supports[-1] if stage else None
    blocks += _plain(model, pair(module.grids[-1]), strides[-1], prefix, stage, reduction)
    return BackboneLayout(tuple(blocks), reads_class_token=True)


def _plain(
    model: Any,
    grid: Pair,
    stride: Pair,
    prefix: Iterable[int],
    stage: int = 0,
    reduction: Reduction | None = None,
) -> list[BlockLayout]:
    """The ``blocks`` of a plain transformer, with the number of prefix tokens in each."""
    return [
        BlockLayout(
            name=f"blocks.{index}",
            block=block,
            attention=block.attn,
            stage=stage,
            grid=grid,
            stride=stride,
            prefix_tokens=tokens,
            reduction=None if index else reduction,
        )
        for index, (block, tokens) in enumerate(zip(model.blocks, prefix, strict=True))
    ]


_LAYOUTS: tuple[tuple[type[nn.Module], Callable[[Any, Pair], BackboneLayout]], ...] = (
    (VisionTransformer, _vit),
    (SwinTransformer, swin_layout),
    (Twins, twins_layout),
    (PyramidVisionTransformerV2, pvt_v2_layout),
    (Levit, levit_layout),
    (ReleasedViT, _released_vit),
    (ReleasedPvt, pvt_layout),
    (T2TViT, _t2t_vit),
)
