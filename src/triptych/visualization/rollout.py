"""Attention rollout: how much of every token's content each input token accounts for.

A block mixes tokens by Ã = rownorm(fused heads + I); the rollout after block n is Ã_n ⋯ Ã_0.
Backbones with several token grids multiply the patch-merging averages in between.

Shapes: B images, L blocks, H heads, N tokens of a block, M tokens of the first stage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.visualization.attention_map import fuse_heads
from triptych.visualization.capture import Capture

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


def discard_lowest(fused: Tensor, discard: float) -> Tensor:
    """Set the smallest ``discard`` of the entries of each matrix (..., N, N) to 0.

    Entry (0, 0) is counted but kept, as in the vit-explain package.
    """
    flat = fused.flatten(-2)
    count = int(flat.shape[-1] * discard)
    if count == 0:
        return fused
    lowest = flat.topk(count, dim=-1, largest=False).indices
    kept = torch.ones_like(flat).scatter(-1, lowest, 0.0)
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
    rows = torch.arange(fine[0]).repeat_interleave(fine[1])
    cols = torch.arange(fine[1]).repeat(fine[0])
    child = rows // 2 * coarse[1] + cols // 2
    merging = torch.zeros(coarse[0] * coarse[1], fine[0] * fine[1])
    merging[child, torch.arange(len(child))] = 1.0
    return merging / merging.sum(-1, keepdim=True)


def rollout_to_input(
    captured: Capture, *, residual: bool = True, head_fusion: str = "mean"
) -> tuple[Tensor, ...]:
    """Rollout after each block down to the tokens of the first stage, one (B, N, M) per block.

    Equal to :func:`attention_rollout` where there is one stage. Windows are scattered to dense
    matrices; between stages the rollout is multiplied by :func:`merging_matrix`, which takes the
    learned reduction for a plain average.

    Raises:
        ValueError: the capture holds no attention, or as :func:`attention_rollout`.
    """
    steps: list[Tensor] = []
    for index, block in enumerate(captured.blocks):
        dense_BNN = block.attention_map.fused(head_fusion).dense()[:, 0]
        mixing_BNN = mixing_matrix(dense_BNN, residual)
        if not steps:
            steps.append(mixing_BNN)
            continue
        so_far_BNM = steps[-1]
        before = captured.blocks[index - 1]
        if block.stage != before.stage:
            so_far_BNM = merging_matrix(before.grid, block.grid).to(so_far_BNM) @ so_far_BNM
        steps.append(mixing_BNN @ so_far_BNM)
    return tuple(steps)


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
    prefix = captured.prefix_tokens
    if captured.reads_class_token:
        relevance_BM = last_BNM[:, 0, prefix:]
    else:
        relevance_BM = last_BNM[:, prefix:, prefix:].mean(1)
    return relevance_BM.unflatten(1, captured.blocks[0].grid)


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
