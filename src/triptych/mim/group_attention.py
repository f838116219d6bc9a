"""Window attention on visible tokens, packed into rows (GreenMIM, arXiv 2205.13515, section 3.2).

Equal to window attention on the whole grid with the hidden keys removed, whatever the packing.

Shapes: B batch, N visible tokens, C channels, H heads, D channels a head, R rows, G slots of a
row, Q samples that share the rows (the batch with one plan, 1 with a plan for each sample).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.swin_transformer import WindowAttention
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from triptych.mim.row_attention import row_attention
from triptych.mim.rows import Slots, WindowRows


class _Lookup(torch.autograd.Function):
    """Rows of a table by number, as in an embedding; the same sum in every run."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(table)
        return F.embedding(index, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,), grad = ctx.saved_tensors, grads[0]
        return torch.ops.aten.embedding_dense_backward(grad, index, ctx.rows, -1, False), None


def window_attention(
    attn: WindowAttention, qkv_BNE: Tensor, rows: WindowRows, pairs_RGG: Tensor, shared: bool
) -> Tensor:
    """Run a Swin attention module on visible tokens.

    Only queries, keys and values enter the rows; both projections run on the tokens.

    Args:
        attn: timm's module, whose parameters are used as they are.
        qkv_BNE: ``attn.qkv`` of the visible tokens, (B, N, 3·C).
        rows: where the tokens go.
        pairs_RGG: ``rows.pair_index()``, the same for all blocks of a stage.
        shared: one plan for the whole batch.

    Returns:
        (B, N, C).
    """
    qkv_QSE = select(rows.slots, qkv_BNE, shared)
    if rows.null is not None:
        # The backbone pads with zero tokens, which the linear layer turns into its bias.
        null = qkv_BNE.new_zeros(()) if attn.qkv.bias is None else attn.qkv.bias.to(qkv_BNE.dtype)
        qkv_QSE = torch.where(rows.null.view(1, -1, 1), null, qkv_QSE)
    dropout = attn.attn_drop.p if attn.training else 0.0
    if qkv_QSE.is_cpu and dropout == 0 and qkv_QSE.dtype in (torch.float32, torch.float64):
        table = attn.relative_position_bias_table
        out_QSC = row_attention(qkv_QSE, table, pairs_RGG, attn.scale)
    else:
        out_QSC = _fused_attention(attn, qkv_QSE, pairs_RGG, dropout)
    out_BNC = unselect(rows.slots, out_QSC, qkv_BNE.shape[0], shared)
    return attn.proj_drop(attn.proj(out_BNC))


def select(slots: Slots | None, x_BNC: Tensor, shared: bool) -> Tensor:
    """Tokens (B, N, C) into slots (Q, S, C); without ``slots``, in their order."""
    x_QSC = x_BNC if shared else x_BNC.flatten(0, 1)[None]
    return x_QSC if slots is None else slots.gather(x_QSC)


def unselect(slots: Slots | None, x_QSC: Tensor, batch: int, shared: bool) -> Tensor:
    """Slots (Q, S, C) back to tokens (B, N, C)."""
    x_QNC = x_QSC if slots is None else slots.scatter(x_QSC)
    return x_QNC if shared else x_QNC.reshape(batch, -1, x_QNC.shape[2])


def _bias(attn: WindowAttention, pairs_RGG: Tensor, dtype: torch.dtype) -> Tensor:
    """Relative position bias of each pair, -inf where there is no attention, (R, H, G, G)."""
    table = attn.relative_position_bias_table
    barred = table.new_full((1, table.shape[1]), -torch.inf)
    bias_RGGH = _Lookup.apply(torch.cat((table, barred)).to(dtype), pairs_RGG)
    bias_RHGG = bias_RGGH.permute(0, 3, 1, 2)
    # Fused CUDA kernels read the bias along the keys.
    return bias_RHGG.contiguous() if bias_RHGG.is_cuda else bias_RHGG


def _fused_attention(
    attn: WindowAttention, qkv_QSE: Tensor, pairs_RGG: Tensor, dropout: float
) -> Tensor:
    """Attention in each row by torch's kernels, (Q, S, C)."""
    samples, rows, slots = len(qkv_QSE), *pairs_RGG.shape[:2]
    heads, depth = attn.num_heads, qkv_QSE.shape[2] // (3 * attn.num_heads)
    bias_RHGG = _bias(attn, pairs_RGG, qkv_QSE.dtype)
    qkv = qkv_QSE.reshape(samples, rows, slots, 3, heads, depth)
    if samples == 1:
        q, k, v = qkv[0].permute(2, 0, 3, 1, 4)
    else:  # rows become heads, so that one bias serves every sample
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).reshape(3, samples, rows * heads, slots, depth)
        bias_RHGG = bias_RHGG.reshape(1, rows * heads, slots, slots)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias_RHGG, dropout_p=dropout, scale=attn.scale
    )
    out = out.reshape(samples, rows, heads, slots, depth)
    return out.transpose(2, 3).reshape(samples, rows * slots, heads * depth)
