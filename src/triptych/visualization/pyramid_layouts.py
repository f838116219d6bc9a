"""The layouts of hierarchical backbones: Swin, Twins, PVT, PVT v2 and LeViT."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
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
    stride = pair(model.patch_embed.patch_size)
    grid = pair(model.patch_embed.dynamic_feat_size(size))
    blocks: list[BlockLayout] = []
    for stage, layer in enumerate(model.layers):
        if stage:
            grid, stride = _halved(grid), _doubled(stride)
        own = _stage_blocks(f"layers.{stage}.blocks", layer.blocks, stage, grid, stride, MERGE_ALL)
        blocks += [
            replace(one, window=pair(one.block.window_size), shift=pair(one.block.shift_size))
            for one in own
        ]
    return BackboneLayout(tuple(blocks))


def twins_layout(model: Any, size: Pair) -> BackboneLayout:
    """Locally-grouped blocks have windows, the others reduce their keys."""
    grid, stride = size, (1, 1)
    blocks: list[BlockLayout] = []
    for stage, embed in enumerate(model.patch_embeds):
        patch = pair(embed.patch_size)
        grid = (grid[0] // patch[0], grid[1] // patch[1])
        stride = (stride[0] * patch[0], stride[1] * patch[1])
        own = _stage_blocks(f"blocks.{stage}", model.blocks[stage], stage, grid, stride, MERGE)
        blocks += [replace(one, window=_local_window(one.attention)) for one in own]
    return BackboneLayout(tuple(blocks))


def pvt_layout(model: Any, size: Pair) -> BackboneLayout:
    """The class token stands in the last stage alone."""
    last = len(model.grids) - 1
    blocks: list[BlockLayout] = []
    for stage, grid in enumerate(model.grids):
        name, stride = f"block{stage + 1}", (size[0] // grid[0], size[1] // grid[1])
        own = _stage_blocks(name, model.get_submodule(name), stage, pair(grid), stride, MERGE)
        blocks += [replace(one, prefix_tokens=int(stage == last)) for one in own]
    return BackboneLayout(tuple(blocks), reads_class_token=True)


def pvt_v2_layout(model: Any, size: Pair) -> BackboneLayout:
    """Patch embeddings overlap."""
    grid, stride = size, (1, 1)
    blocks: list[BlockLayout] = []
    for stage, module in enumerate(model.stages):
        reduction = convolution_support((module.downsample if stage else model.patch_embed).proj)
        grid = _convolved(grid, reduction)
        stride = (stride[0] * reduction.stride[0], stride[1] * reduction.stride[1])
        name = f"stages.{stage}.blocks"
        blocks += _stage_blocks(name, module.blocks, stage, grid, stride, reduction)
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
    blocks: list[BlockLayout] = []
    pixels = int(model.stem.stride)
    for stage, module in enumerate(model.stages):
        if isinstance(module.downsample, LevitDownsample):
            pixels *= int(module.downsample.attn_downsample.stride)
            blocks.append(_levit_downsample(module.downsample, stage, (pixels, pixels)))
        own = _stage_blocks(
            f"stages.{stage}.blocks", module.blocks, stage, (1, 1), (pixels, pixels), None
        )
        blocks += [
            replace(one, grid=pair(one.attention.resolution), norm_sites=LEVIT_NORMS) for one in own
        ]
    return BackboneLayout(tuple(blocks))


def _stage_blocks(
    name: str,
    blocks: Iterable[Any],
    stage: int,
    grid: Pair,
    stride: Pair,
    reduction: Reduction | None,
) -> list[BlockLayout]:
    """The blocks of one stage, modules ``name``.0, ``name``.1, …

    From the second stage on ``reduction`` stands before the first.
    """
    return [
        BlockLayout(
            name=f"{name}.{index}",
            block=block,
            attention=block.attn,
            stage=stage,
            grid=grid,
            stride=stride,
            reduction=reduction if stage and not index else None,
        )
        for index, block in enumerate(blocks)
    ]


def _local_window(attention: Any) -> Pair | None:
    side = attention.ws if isinstance(attention, LocallyGroupedAttn) else None
    return None if side is None else (side, side)


def _levit_downsample(module: LevitDownsample, stage: int, stride: Pair) -> BlockLayout:
    attention = module.attn_downsample
    fine, step = pair(attention.resolution), int(attention.stride)
    return BlockLayout(
        name=f"stages.{stage}.downsample",
        block=module,
        attention=attention,
        stage=stage,
        grid=(-(-fine[0] // step), -(-fine[1] // step)),
        stride=stride,
        key_grid=fine,
        norm_sites=(),
    )


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
