"""Attention in rows on a CPU, with its backward pass by hand.

On a CPU torch has no fused kernel for a bias that wants a gradient; what it composes instead scales
queries and keys, adds the bias and guards the softmax in passes of their own. Here the bias is
what the product of queries and keys is added to, and its gradient is summed by table row directly.

Shapes: Q samples that share the rows, R rows, G slots of a row, S = R·G, H heads, D channels of a
head, X = Q·R·H, T table rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_QSE: Tensor, table_TH: Tensor, pairs_RGG: Tensor, scale: float
    ) -> Tensor:
        samples, _, width = qkv_QSE.shape
        rows, slots, _ = pairs_RGG.shape
        heads = table_TH.shape[1]
        layout = samples, rows, slots, 3, heads, width // (3 * heads)
        # One batch of matrices: a sample's row and head.
        qkv = qkv_QSE.view(layout).permute(3, 0, 1, 4, 2, 5).contiguous()
        qkv_3XGD = qkv.view(3, -1, slots, layout[-1])
        query, key, value = qkv_3XGD
        bias_RHGG = _bias(table_TH, pairs_RGG)
        # Each matrix in memory of its own: it is written to. One for a single sample is, see _bias.
        logits_RHGG = bias_RHGG if samples == 1 else bias_RHGG.repeat(samples, 1, 1, 1)
        logits_XGG = logits_RHGG.view(-1, slots, slots)
        logits_XGG.baddbmm_(query, key.mT, alpha=scale)
        weights_XGG = logits_XGG.softmax(-1)
        ctx.save_for_backward(qkv_3XGD, weights_XGG, pairs_RGG)
        ctx.layout, ctx.table_rows, ctx.scale = layout, len(table_TH), scale
        out = torch.bmm(weights_XGG, value).view(samples, rows, heads, slots, -1)
        return out.transpose(2, 3).reshape(samples, rows * slots, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        qkv_3XGD, weights_XGG, pairs_RGG = ctx.saved_tensors
        samples, rows, slots, _, heads, depth = ctx.layout
        query, key, value = qkv_3XGD
        grad = grads[0].view(samples, rows, slots, heads, depth).transpose(2, 3)
        grad_XGD = grad.reshape(-1, slots, depth)
        grads_3XGD = torch.empty_like(qkv_3XGD)
        torch.bmm(weights_XGG.mT, grad_XGD, out=grads_3XGD[2])
        grad_XGG = torch.bmm(grad_XGD, value.mT)
        grad_XGG = torch._softmax_backward_data(grad_XGG, weights_XGG, -1, weights_XGG.dtype)
        for target, factor, other in ((0, grad_XGG, key), (1, grad_XGG.mT, query)):
            torch.baddbmm(
                grads_3XGD[target],
                factor,
                other,
                beta=0,
                alpha=ctx.scale,
                out=grads_3XGD[target],
            )
        grad_qkv = grads_3XGD.view(3, samples, rows, heads, slots, depth).permute(1, 2, 4, 0, 3, 5)
        grad_QRHGG = grad_XGG.view(samples, rows, heads, slots, slots)
        grad_RHGG = grad_QRHGG[0] if samples == 1 else grad_QRHGG.sum(0)
        grad_table = _table_gradient(grad_RHGG, pairs_RGG, ctx.table_rows)
        return grad_qkv.reshape(samples, rows * slots, -1), grad_table, None, None


def row_attention(qkv_QSE: Tensor, table_TH: Tensor, pairs_RGG: Tensor, scale: float) -> Tensor:
    """Attention in each row; the same sums in the same order in every run.

    Args:
        qkv_QSE: queries, keys and values of the slots, E = 3·H·D.
        table_TH: relative position bias of each head.
        pairs_RGG: table row of each pair of slots, int64; T where there is no attention. Every
            slot must attend to one at least.
        scale: of the products of queries and keys.

    Returns:
        (Q, S, H·D).
    """
    return _RowAttention.apply(qkv_QSE.contiguous(), table_TH, pairs_RGG, scale)


def _bias(table_TH: Tensor, pairs_RGG: Tensor) -> Tensor:
    """Bias of each pair, -inf where there is no attention, (R, H, G, G) in memory of its own."""
    heads = table_TH.shape[1]
    barred_H1 = table_TH.new_full((heads, 1), -torch.inf)
    table_HT = torch.cat((table_TH.T, barred_H1), 1)
    rows, slots, _ = pairs_RGG.shape
    index = pairs_RGG.view(rows, 1, -1).expand(-1, heads, -1)
    return table_HT.expand(rows, -1, -1).gather(2, index).view(rows, heads, slots, slots)


def _table_gradient(grad_RHGG: Tensor, pairs_RGG: Tensor, table_rows: int) -> Tensor:
    rows, heads = grad_RHGG.shape[:2]
    index = pairs_RGG.view(rows, 1, -1).expand(-1, heads, -1)
    sums_RHT = grad_RHGG.new_zeros(rows, heads, table_rows + 1)
    sums_RHT.scatter_add_(2, index, grad_RHGG.reshape(rows, heads, -1))
    return sums_RHT.sum(0)[:, :table_rows].T
