"""The layouts of hierarchical backbones: Swin, Twins, PVT, PVT v2 and LeViT."""

from __future__ import annotations

from typing import Any

from timm.models.levit import LevitDownsample
from timm.models.twins import LocallyGroupedAttn

from triptych.visualization.block_layout import (
    BackboneLayout,
    BlockLayout,
    convolution_support,
    pair,
)
from triptych.visualization.stage_reduction import Pair, Reduction

# LeViT has BatchNorm inside its linear layers; other norms take the place of these two.
LEVIT_NORMS = ("attn.qkv.bn", "mlp.ln1.bn")
MERGE = Reduction((2, 2), (2, 2))
# Swin pads odd grids, so the last child has fewer parents.
MERGE_ALL = Reduction((2, 2), (2, 2), ceil=True)


def swin_layout(model: Any, size: Pair) -> BackboneLayout:
    """Every merging halves the grid, odd sides rounded up."""
    patch = pair(model.patch_embed.patch_size)
    grid = pair(model.patch_embed.dynamic_feat_size(size))
    blocks = []
    for stage, layer in enumerate(model.layers):
        if stage:
            grid, patch = _halved(grid), _doubled(patch)
        for index, block in enumerate(layer.blocks):
            blocks.append(
                BlockLayout(
                    name=f"layers.{stage}.blocks.{index}",
                    block=block,
                    attention=block.attn,
                    stage=stage,
                    grid=grid,
                    stride=patch,
                    window=pair(block.window_size),
                    shift=pair(block.shift_size),
                    reduction=MERGE_ALL if stage and not index else None,
                )
            )
    return BackboneLayout(tuple(blocks))


def twins_layout(model: Any, size: Pair) -> BackboneLayout:
    """Locally-grouped blocks have windows, the others reduce their keys."""
    blocks, grid, stride = [], size, (1, 1)
    for stage, embed in enumerate(model.patch_embeds):
        patch = pair(embed.patch_size)
        grid = (grid[0] // patch[0], grid[1] // patch[1])
        stride = (stride[0] * patch[0], stride[1] * patch[1])
        for index, block in enumerate(model.blocks[stage]):
            side = block.attn.ws if isinstance(block.attn, LocallyGroupedAttn) else None
            blocks.append(
                BlockLayout(
                    name=f"blocks.{stage}.{index}",
                    block=block,
                    attention=block.attn,
                    stage=stage,
                    grid=grid,
                    stride=stride,
                    window=None if side is None else (side, side),
                    reduction=MERGE if stage and not index else None,
                )
            )
    return BackboneLayout(tuple(blocks))


def pvt_layout(model: Any, size: Pair) -> BackboneLayout:
    """The class token stands in the last stage alone."""
    blocks, last = [], len(model.grids) - 1
    for stage, grid in enumerate(model.grids):
        for index, block in enumerate(model.get_submodule(f"block{stage + 1}")):
            blocks.append(
                BlockLayout(
                    name=f"block{stage + 1}.{index}",
                    block=block,
                    attention=block.attn,
                    stage=stage,
                    grid=pair(grid),
                    stride=(size[0] // grid[0], size[1] // grid[1]),
                    prefix_tokens=int(stage == last),
                    reduction=MERGE if stage and not index else None,
                )
            )
    return BackboneLayout(tuple(blocks), reads_class_token=True)


def pvt_v2_layout(model: Any, size: Pair) -> BackboneLayout:
    """Patch embeddings overlap."""
    blocks, grid, pixels = [], size, (1, 1)
    for stage, module in enumerate(model.stages):
        conv = (module.downsample if stage else model.patch_embed).proj
        reduction = convolution_support(conv)
        grid = _convolved(grid, reduction)
        pixels = (pixels[0] * reduction.stride[0], pixels[1] * reduction.stride[1])
        for index, block in enumerate(module.blocks):
            blocks.append(
                BlockLayout(
                    name=f"stages.{stage}.blocks.{index}",
                    block=block,
                    attention=block.attn,
                    stage=stage,
                    grid=grid,
                    stride=pixels,
                    reduction=reduction if stage and not index else None,
                )
            )
    return BackboneLayout(tuple(blocks))


def levit_layout(model: Any, size: Pair) -> BackboneLayout:
    """Between stages attention itself shrinks the grid.

    Raises:
        ValueError: it is built of convolutions.
    """
    if model.use_conv:
        raise ValueError(
            "cannot capture a LeViT built of convolutions; build it with use_conv=False, which "
            "computes the same"
        )
    blocks, pixels = [], int(model.stem.stride)
    for stage, module in enumerate(model.stages):
        if isinstance(module.downsample, LevitDownsample):
            attention = module.downsample.attn_downsample
            fine, step = pair(attention.resolution), int(attention.stride)
            pixels *= step
            blocks.append(
                BlockLayout(
                    name=f"stages.{stage}.downsample",
                    block=module.downsample,
                    attention=attention,
                    stage=stage,
                    grid=(-(-fine[0] // step), -(-fine[1] // step)),
                    stride=(pixels, pixels),
                    key_grid=fine,
                    norm_sites=(),
                )
            )
        for index, block in enumerate(module.blocks):
            blocks.append(
                BlockLayout(
                    name=f"stages.{stage}.blocks.{index}",
                    block=block,
                    attention=block.attn,
                    stage=stage,
                    grid=pair(block.attn.resolution),
                    stride=(pixels, pixels),
                    norm_sites=LEVIT_NORMS,
                )
            )
    return BackboneLayout(tuple(blocks))


def _convolved(grid: Pair, by: Reduction) -> Pair:
    rows, cols = (
        (grid[axis] + 2 * by.padding[axis] - by.kernel[axis]) // by.stride[axis] + 1
        for axis in (0, 1)
    )
    return rows, cols


def _halved(grid: Pair) -> Pair:
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2


def _doubled(stride: Pair) -> Pair:
    return 2 * stride[0], 2 * stride[1]
