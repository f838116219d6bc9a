"""Attention rollout: how much of every token's content each input token accounts for.

A block mixes tokens by Ã = rownorm(fused heads + I); the rollout after block n is Ã_n ⋯ Ã_0.
Backbones with several token grids multiply the patch-merging averages in between.

Shapes: B images, L blocks, H heads, N tokens of a block, M tokens of the first stage, P plans of
visible tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.visualization.attention_map import fuse_heads
from triptych.visualization.capture import BlockCapture, Capture
from triptych.visualization.stage_reduction import Reduction

# Rows of a half-precision softmax sum to 1 only to about this.
_ROW_SUM_SLACK = 0.02


def attention_rollout(
    attention: Tensor,
    residual: bool = True,
    head_fusion: str = "mean",
    discard: float = 0.0,
) -> Tensor:
    """Cumulative attention (B, L, N, N) of post-softmax ``attention`` (B, L, H, N, N).

    Entry [b, l, i, j] is the share of input token j in token i after block l; rows sum to 1.

    Args:
        attention: rows are queries and sum to 1; a token that is absent has a row of zeros.
        residual: add the identity for the skip connection before rows are normalised.
        head_fusion: "mean", "max" or "min" over the heads.
        discard: fraction in [0, 1) of each fused matrix's smallest entries to set to 0; entry
            (0, 0), the class token's own, stays.

    Raises:
        ValueError: a wrong shape, values that are no probabilities, an option out of range, or a
            row left without any attention.
    """
    _check_attention(attention, residual, discard)
    dtype = torch.promote_types(attention.dtype, torch.float32)
    fused_BLNN = fuse_heads(attention.to(dtype), head_fusion, 2)
    mixing_BLNN = mixing_matrix(discard_lowest(fused_BLNN, discard), residual)
    steps = list(mixing_BLNN.unbind(1))
    for block in range(1, len(steps)):
        steps[block] = steps[block] @ steps[block - 1]
    return torch.stack(steps, dim=1)


def mixing_matrix(fused: Tensor, residual: bool) -> Tensor:
    """Row-normalised mixing matrix Ã of head-fused attention (..., N, N).

    Raises:
        ValueError: a row without any attention, which only ``residual=True`` can fill.
    """
    if residual:
        fused = fused + torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
    row_sums = fused.sum(-1, keepdim=True)
    if not bool((row_sums > 0).all()):
        raise ValueError("a token attends to nothing after head fusion; use residual=True")
    return fused / row_sums


def discard_lowest(fused: Tensor, discard: float, *, keep_first: bool = True) -> Tensor:
    """Set the smallest ``discard`` of the entries of each matrix (..., N, N) to 0.

    Entry (0, 0) is counted but kept, as in the vit-explain package (not in its gradient rollout,
    ``keep_first=False``).
    """
    flat = fused.flatten(-2)
    count = int(flat.shape[-1] * discard)
    if count == 0:
        return fused
    lowest = flat.topk(count, dim=-1, largest=False).indices
    kept = torch.ones_like(flat).scatter(-1, lowest, 0.0)
    if keep_first:
        kept[..., 0] = 1.0
    return (flat * kept).view_as(fused)


def merging_matrix(fine: tuple[int, int], coarse: tuple[int, int]) -> Tensor:
    """Patch merging as an average, (coarse tokens, fine tokens): each child over its 2 x 2 parents.

    At the border of an odd grid a child has only the parents that exist; rows sum to 1.

    Raises:
        ValueError: ``coarse`` is not ``fine`` halved and rounded up.
    """
    if coarse != ((fine[0] + 1) // 2, (fine[1] + 1) // 2):
        raise ValueError(
            f"patch merging takes a grid of {fine[0]}x{fine[1]} to "
            f"{(fine[0] + 1) // 2}x{(fine[1] + 1) // 2}, not to {coarse[0]}x{coarse[1]}"
        )
    return Reduction((2, 2), (2, 2), ceil=True).matrix(fine, coarse)


def rollout_to_input(
    captured: Capture, *, residual: bool = True, head_fusion: str = "mean"
) -> tuple[Tensor, ...]:
    """Rollout after each block down to the tokens of the first stage, one (B, N, M) per block.

    Equal to :func:`attention_rollout` where there is one stage. Windows and reduced keys are
    scattered to dense matrices. Between stages the rollout is multiplied by the average over the
    tokens that the patch embedding or merging reads, or by the attention that shrinks the grid.
    M counts the prefix tokens of the last block, then the grid of the first; a prefix token that
    joins late is its own source.

    Raises:
        ValueError: the capture holds no attention or not all blocks, or as
            :func:`attention_rollout`.
    """
    steps: list[Tensor] = []
    blocks = captured.whole()
    for index, block in enumerate(blocks):
        dense_BNM = block.attention_map.fused(head_fusion).dense()[:, 0]
        # Attention that shrinks the grid has no skip connection round it.
        mixing_BNM = mixing_matrix(dense_BNM, residual and block.key_grid is None)
        if index == 0:
            so_far_BNM = source_tokens(captured).to(mixing_BNM).expand(len(mixing_BNM), -1, -1)
        else:
            so_far_BNM = enter_block(steps[-1], blocks[index - 1], block)
        steps.append(mixing_BNM @ so_far_BNM)
    return tuple(steps)


def source_tokens(captured: Capture) -> Tensor:
    """Which source each token before the first block is, (N, M)."""
    first = captured.blocks[0]
    grid = first.grid[0] * first.grid[1] if first.visible is None else first.visible.shape[1]
    late = captured.prefix_tokens - first.prefix_tokens
    return torch.eye(captured.prefix_tokens + grid)[late:]


def enter_block(so_far: Tensor, before: BlockCapture, block: BlockCapture) -> Tensor:
    """What the tokens that enter ``block`` are made of, given those that left ``before``.

    Both (B, tokens, M). The grid is reduced where a stage begins; a prefix token that joins takes
    the column that was kept for it.
    """
    prefix_BPM, grid_BNM = so_far.tensor_split([before.prefix_tokens], dim=1)
    if block.reduction is not None:
        grid_BNM = reduction_matrix(before, block).to(grid_BNM) @ grid_BNM
    joining = block.prefix_tokens - before.prefix_tokens
    if joining:
        new_JM = torch.eye(joining, so_far.shape[-1], dtype=so_far.dtype, device=so_far.device)
        prefix_BPM = torch.cat((new_JM.expand(len(so_far), -1, -1), prefix_BPM), 1)
    return torch.cat((prefix_BPM, grid_BNM), 1)


def reduction_matrix(before: BlockCapture, block: BlockCapture) -> Tensor:
    """Share of the tokens of ``before`` in those of ``block``, ((P,) coarse, fine); rows sum to 1.

    Where only visible tokens run, over those.
    """
    assert block.reduction is not None
    matrix_MN = block.reduction.matrix(before.grid, block.grid)
    if block.visible is None or before.visible is None:
        return matrix_MN
    fine, coarse = before.visible.cpu(), block.visible.cpu()
    matrix_PMN = matrix_MN[coarse[:, :, None], fine[:, None, :]]
    return matrix_PMN / matrix_PMN.sum(-1, keepdim=True)


def image_relevance(
    captured: Capture, *, residual: bool = True, head_fusion: str = "mean"
) -> Tensor:
    """Share of each image region in what the head reads: (B, rows, cols) of the first stage.

    The class token's row of the last rollout where the head reads a class token, else the mean
    over the rows of the grid tokens. Not rescaled: a map sums to 1 less what fell on prefix tokens.

    Raises:
        ValueError: as :func:`rollout_to_input`.
    """
    last_BNM = rollout_to_input(captured, residual=residual, head_fusion=head_fusion)[-1]
    return relevance_of_head(last_BNM, captured)


def relevance_of_head(shares: Tensor, captured: Capture) -> Tensor:
    """Read ``shares`` (B, N, M) as the head reads tokens: (B, rows, cols) of the first stage.

    Regions of tokens that did not run have 0.
    """
    prefix, first = captured.prefix_tokens, captured.blocks[0]
    if captured.reads_class_token:
        relevance_BM = shares[:, 0, prefix:]
    else:
        relevance_BM = shares[:, prefix:, prefix:].mean(1)
    if first.visible is not None:
        whole_BM = relevance_BM.new_zeros(len(shares), first.grid[0] * first.grid[1])
        visible_BM = first.visible.to(shares.device).expand(len(shares), -1)
        relevance_BM = whole_BM.scatter(1, visible_BM, relevance_BM)
    return relevance_BM.unflatten(1, first.grid)


def _check_attention(attention: Tensor, residual: bool, discard: float) -> None:
    if attention.ndim != 5 or attention.shape[-1] != attention.shape[-2]:
        raise ValueError(
            f"attention has shape {tuple(attention.shape)}; "
            "give (images, blocks, heads, tokens, tokens)"
        )
    if not attention.is_floating_point() or 0 in attention.shape:
        raise ValueError(
            f"attention is {attention.dtype} of shape {tuple(attention.shape)}; "
            "give floating-point probabilities with no empty dimension"
        )
    if not 0 <= discard < 1:
        raise ValueError(f"discard is {discard}; give a fraction from 0 up to, not including, 1")
    if discard and not residual:
        raise ValueError(f"discard={discard} can empty a row; use it with residual=True")
    lowest, largest = attention.min().item(), attention.float().sum(-1).max().item()
    if not (lowest >= 0 and largest <= 1 + _ROW_SUM_SLACK):
        raise ValueError(
            f"attention has a smallest entry of {lowest:.3g} and a largest row sum of "
            f"{largest:.3g}; give post-softmax attention, whose rows are probabilities"
        )
