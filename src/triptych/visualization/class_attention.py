"""Attention of the class token, head by head, and the part of the image that most of it falls on.

Shapes: B images, H heads, N grid tokens.
"""

from __future__ import annotations

from torch import Tensor

from triptych.visualization.capture import Capture


def class_attention(captured: Capture, block: int = -1) -> Tensor:
    """The class token's attention to the grid in one block, (B, H, rows, cols).

    As it is, without the mass on prefix tokens.

    Raises:
        ValueError: no class token is there, or the capture holds no attention.
    """
    chosen = captured.blocks[block]
    if not captured.reads_class_token or chosen.prefix_tokens == 0:
        raise ValueError(
            f"block {chosen.name} has no class token that the head reads; "
            "read image_relevance instead"
        )
    row_BHN = chosen.attention_map.dense()[:, :, 0, chosen.prefix_tokens :]
    return row_BHN.unflatten(-1, chosen.grid)


def mass_mask(attention: Tensor, mass: float) -> Tensor:
    """The strongest places of maps (..., rows, cols) that together hold ``mass``, as bool.

    Of each map the places are added from the strongest on while those before hold less than
    ``mass`` of the whole (Caron et al. 2021, arXiv 2104.14294).

    Raises:
        ValueError: ``mass`` is not in (0, 1].
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass is {mass}; give a fraction above 0, up to 1")
    flat = attention.flatten(-2)
    shares, order = (flat / flat.sum(-1, keepdim=True)).sort(-1, descending=True)
    before = shares.cumsum(-1) - shares
    kept = (before < mass).to(flat.dtype)
    return (kept.new_zeros(kept.shape).scatter(-1, order, kept) > 0).view_as(attention)
