"""Attention of visible tokens to reduced keys, as in PVT and in every second block of Twins-SVT.

Keys and values come from cells of tokens, each reduced to one by a convolution whose kernel equals
its stride. Mask units are whole cells, so that a hidden key is one whose cell is hidden: it does
not exist, and neither do the tokens in it (PVT, arXiv 2102.12122; Twins, arXiv 2104.13840;
GreenMIM, arXiv 2205.13515).

Shapes: B batch, N visible tokens, C channels, H heads, D channels a head.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from triptych.mim.encoder import apply_norm
from triptych.mim.sparse_conv import convolve_cells
from triptych.mim.token_plan import StagePlan


def reduced_attention(attn: Any, x_BNC: Tensor, plan: StagePlan, shared: bool) -> Tensor:
    """Run a PVT or Twins attention module on visible tokens.

    Args:
        attn: timm's GlobalSubSampleAttn of Twins or Attention of PVT v2; its parameters are used
            as they are.
        x_BNC: visible tokens; without reduction, prefix tokens may stand in front.
        plan: of the stage.
        shared: one plan for the whole batch.

    Returns:
        (B, N, C).
    """
    q_BHND = attn.q(x_BNC).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
    keys_BMC = x_BNC
    side = cell_side(attn)
    if side > 1:
        cells = plan.cells[side]
        keys_BMC = convolve_cells(attn.sr, x_BNC, cells.slots, shared)
        visible = cells.visible[0] if shared else cells.visible
        all_visible = keys_BMC.shape[1] == cells.visible.shape[1]
        keys_BMC = apply_norm(attn.norm, keys_BMC, None if all_visible else visible)
    kv = attn.kv(keys_BMC).unflatten(2, (2, attn.num_heads, -1))
    k_BHMD, v_BHMD = kv.permute(2, 0, 3, 1, 4)
    dropout = attn.attn_drop.p if attn.training else 0.0
    out_BHND = F.scaled_dot_product_attention(q_BHND, k_BHMD, v_BHMD, dropout_p=dropout)
    return attn.proj_drop(attn.proj(out_BHND.transpose(1, 2).flatten(2)))


def cell_side(attn: Any) -> int:
    """Side in tokens of the cells that ``attn`` reduces to one key; 1 without reduction."""
    return 1 if attn.sr is None else int(attn.sr.stride[0])


def check_reduction(attn: Any, unit: int, where: str) -> None:
    """Refuse an attention whose keys a mask of units of ``unit`` tokens a side would cut.

    Raises:
        ValueError: its keys are pooled, or a cell is no part of a unit.
    """
    if getattr(attn, "pool", None) is not None:
        raise ValueError(
            f"{where} pools its keys over the whole image; visible tokens need keys that are "
            f"reduced in cells (linear=False)"
        )
    side = cell_side(attn)
    if unit % side:
        raise ValueError(
            f"{where} reduces cells of {side}x{side} tokens, which the mask units of {unit}x{unit} "
            f"tokens would cut; legal sides are the divisors of {unit}"
        )
