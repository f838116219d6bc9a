"""Where one block of a backbone lies: its attention, token grid, windows, norms, prefix tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from triptych.visualization.stage_reduction import Pair, Reduction

PRE_NORMS = ("norm1", "norm2")


@dataclass(frozen=True)
class BlockLayout:
    """One block before it is run.

    Attributes:
        name: module path in the backbone.
        block, attention: the modules.
        stage: index of its token grid, 0 for a backbone of one resolution.
        grid: (rows, columns) of its tokens.
        stride: (height, width) in pixels of the image region of one token.
        prefix_tokens: number of tokens before the grid (class token, registers) in this block.
        window, shift: of the attention windows in tokens; the grid and 0 for global attention.
        key_grid: grid of the keys where the block shrinks its grid by attention and has no skip
            connection round it (LeViT between stages); else None.
        reduction: how the tokens of the stage before became this block's, on the first block of a
            stage that attention did not make.
        norm_sites: module paths of its norms under the block.
    """

    name: str
    block: nn.Module
    attention: nn.Module
    stage: int
    grid: Pair
    stride: Pair
    prefix_tokens: int = 0
    window: Pair | None = None
    shift: Pair = (0, 0)
    key_grid: Pair | None = None
    reduction: Reduction | None = None
    norm_sites: tuple[str, ...] = PRE_NORMS


@dataclass(frozen=True)
class BackboneLayout:
    """All blocks in the order of the forward pass.

    ``reads_class_token``: the head reads token 0 of the last block, else it averages the grid.
    """

    blocks: tuple[BlockLayout, ...]
    reads_class_token: bool = False


def convolution_support(conv: nn.Conv2d) -> Reduction:
    """Kernel, stride and padding of a convolution."""
    return Reduction(pair(conv.kernel_size), pair(conv.stride), pair(conv.padding))


def pair(value: Any) -> Pair:
    """(height, width) of one number for both or of two."""
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)
