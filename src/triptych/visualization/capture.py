"""One forward pass that keeps what the pictures need: attention, hidden states, norms.

Fused kernels never form the attention matrix, so it is computed again from the queries and keys
that the layer itself made, and held against the layer's own output.

Shapes: B images, N tokens (prefix tokens first, then the grid row by row), C channels, H heads,
W windows, Q queries and K keys of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from triptych.visualization.attention_map import AttentionMap, check_head_fusion
from triptych.visualization.block_layout import BlockLayout
from triptych.visualization.layouts import backbone_layout
from triptych.visualization.readers import reader_of
from triptych.visualization.stage_reduction import Pair, Reduction
from triptych.visualization.tapes import AttentionTape, BlockTape


@dataclass(frozen=True)
class NormCapture:
    """What one norm was given and what it returned, both (B, N, C).

    Attributes:
        site: module path under the block: "norm1" (before attention), "norm2" (before the MLP).
        kind: class name of the norm, such as "LayerNorm".
    """

    site: str
    kind: str
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class BlockCapture:
    """One transformer block.

    Attributes:
        index: its place in the forward pass.
        name: module path in the backbone, such as "layers.1.blocks.0".
        stage: index of the stage, 0 for a backbone of one resolution.
        grid: (rows, columns) of its tokens.
        stride: (height, width) in pixels of the image region of one token.
        heads: number of attention heads.
        window: (rows, columns) of an attention window in tokens; the grid for global attention.
        shift: (rows, columns) by which the windows are shifted.
        hidden: (B, N, C), block output, residual stream, before any later norm.
        attention: None where it was not asked for.
        norms: empty where they were not asked for.
        prefix_tokens: number of tokens before the grid in this block.
        key_grid: grid of the keys where attention without a skip connection shrinks the grid.
        reduction: how the tokens of the stage before became this block's; None within a stage.
        visible: (P, N) grid numbers of the tokens where only some run, one row for the batch or
            one for each image; None where all do.
    """

    index: int
    name: str
    stage: int
    grid: Pair
    stride: Pair
    heads: int
    window: Pair
    shift: Pair
    hidden: Tensor
    attention: AttentionMap | None
    norms: tuple[NormCapture, ...]
    prefix_tokens: int = 0
    key_grid: Pair | None = None
    reduction: Reduction | None = None
    visible: Tensor | None = None

    @property
    def attention_map(self) -> AttentionMap:
        """The attention.

        Raises:
            ValueError: the capture was made without attention.
        """
        if self.attention is None:
            raise ValueError(
                f"block {self.name} was captured with attention=False; "
                "capture again with attention=True"
            )
        return self.attention


@dataclass(frozen=True)
class Capture:
    """What one forward pass of a backbone left behind.

    Attributes:
        blocks: in the order of the forward pass; all, or those that were asked for.
        depth: number of blocks of the backbone.
        reads_class_token: True where the head reads token 0, False where it averages the grid.
        image_size: (height, width) in pixels.
        output: what the model returned.
    """

    blocks: tuple[BlockCapture, ...]
    depth: int
    reads_class_token: bool
    image_size: Pair
    output: Tensor

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the grid (class token, registers) in the last block."""
        return self.blocks[-1].prefix_tokens

    @property
    def stages(self) -> int:
        """Number of stages, that is of token grids."""
        return self.blocks[-1].stage + 1

    def whole(self) -> tuple[BlockCapture, ...]:
        """All blocks of the backbone.

        Raises:
            ValueError: only some were kept.
        """
        if len(self.blocks) != self.depth:
            raise ValueError(
                f"{len(self.blocks)} of {self.depth} blocks were captured; what passes through "
                "all blocks needs a capture with blocks=None"
            )
        return self.blocks

    def attention(self) -> Tensor:
        """Dense attention of all blocks, (B, L, H, N, N), for backbones of one stage.

        N counts the prefix tokens of the last block; one that joins late has rows and columns of
        0 in the blocks before.

        Raises:
            ValueError: several stages, whose matrices differ in size.
        """
        if self.stages > 1:
            raise ValueError(
                f"the attention of {self.stages} stages cannot be stacked; "
                "read each block's attention_map.dense() or use rollout_to_input"
            )
        dense = []
        for block in self.blocks:
            late = self.prefix_tokens - block.prefix_tokens
            dense.append(nn.functional.pad(block.attention_map.dense(), (late, 0, late, 0)))
        return torch.stack(dense, dim=1)


@contextmanager
def evaluating(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Eval mode, without gradients or with; every module gets back the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for module, training in modes:
            module.training = training


def capture(
    model: nn.Module,
    images: Tensor,
    *,
    attention: bool = True,
    norms: bool = True,
    blocks: Sequence[int] | None = None,
    head_fusion: str | None = None,
    keep_on: torch.device | str | None = None,
) -> Capture:
    """Run ``model`` once on ``images`` (B, channels, height, width) and keep its insides.

    Norms are whatever modules stand at the norm sites of each block. Attention is computed in
    float32 (float64 for a float64 model). The model is run in eval mode without gradients and may
    be frozen. Memory: B·H·N·K floats of attention per block that is kept (B·N·K with
    ``head_fusion``), and one block's more while it runs.

    Args:
        model: a ViT, Swin, Twins, PVT, LeViT or T2T-ViT with any norms.
        attention, norms: whether to keep them.
        blocks: numbers of the blocks to keep, negative ones from the end; all by default.
        head_fusion: keep heads fused by "mean", "max" or "min" in place of each.
        keep_on: device to move what is kept to as soon as a block has run.

    Raises:
        ValueError: another kind of model or attention, a block that there is not, or a model that
            drops tokens.
        RuntimeError: the recomputed attention does not reproduce the layer's own output.
    """
    size = (int(images.shape[-2]), int(images.shape[-1]))
    layout = backbone_layout(model, size)
    chosen = choose_blocks(blocks, len(layout.blocks))
    if head_fusion is not None:
        check_head_fusion(head_fusion)

    finish = partial(_kept, head_fusion, keep_on)
    with ExitStack() as stack:
        taped = [
            (
                BlockTape(block, stack, norms=norms, keep_on=keep_on),
                AttentionTape(reader_of(block), stack, finish=finish) if attention else None,
            )
            for block in (layout.blocks[index] for index in chosen)
        ]
        stack.enter_context(evaluating(model))
        output = model(images)
        kept = tuple(
            block_capture(index, layout.blocks[index], *tapes)
            for index, tapes in zip(chosen, taped, strict=True)
        )
    return Capture(kept, len(layout.blocks), layout.reads_class_token, size, output)


def _kept(
    head_fusion: str | None, keep_on: torch.device | str | None, made: AttentionMap
) -> AttentionMap:
    """What is kept of a block's attention, as `capture` was asked."""
    made = made if head_fusion is None else made.fused(head_fusion)
    return made if keep_on is None else made.to(keep_on)


def choose_blocks(blocks: Sequence[int] | None, depth: int) -> list[int]:
    """The numbers of the blocks to keep, in the order of the forward pass.

    Raises:
        ValueError: no block, or one that there is not.
    """
    if blocks is None:
        return list(range(depth))
    wrong = [index for index in blocks if not -depth <= index < depth]
    if wrong or not blocks:
        raise ValueError(
            f"blocks={list(blocks)} must name some of the {depth} blocks, {-depth} to {depth - 1}"
        )
    return sorted({index % depth for index in blocks})


def block_capture(
    index: int,
    layout: BlockLayout,
    tape: BlockTape,
    attention: AttentionTape | None,
    visible: Tensor | None = None,
) -> BlockCapture:
    """What was recorded of one block, whose tokens are those at ``visible`` (P, N) or all.

    Raises:
        ValueError: it returned another number of tokens than it should have.
    """
    hidden = tape.hidden
    on_grid = layout.grid[0] * layout.grid[1] if visible is None else int(visible.shape[1])
    tokens = layout.prefix_tokens + on_grid
    if hidden.shape[1] != tokens:
        raise ValueError(
            f"{layout.name} returned {hidden.shape[1]} tokens where the image has {tokens}; "
            "capture needs a backbone that keeps all its tokens"
        )
    norms = tuple(
        NormCapture(
            site,
            type(layout.block.get_submodule(site)).__name__,
            *tape.norm_tokens(site, len(hidden)),
        )
        for site in tape.sites
    )
    return BlockCapture(
        index=index,
        name=layout.name,
        stage=layout.stage,
        grid=layout.grid,
        stride=layout.stride,
        heads=int(getattr(layout.attention, "num_heads", 1)),
        window=layout.window or layout.grid,
        shift=layout.shift,
        hidden=hidden,
        attention=None if attention is None else attention.attention,
        norms=norms,
        prefix_tokens=layout.prefix_tokens,
        key_grid=layout.key_grid,
        reduction=layout.reduction,
        visible=visible,
    )
