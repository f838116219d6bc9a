"""How far a view spreads over the image, as numbers.

Shapes: B images, T tokens, N patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.visualization.attention_distance import token_distances


@dataclass(frozen=True)
class ViewSpread:
    """Each (B, T), from the shares p of the patches in a token, which are scaled to sum to 1.

    Attributes:
        effective_patches: 1 / Σ p², from 1 to N.
        entropy: -Σ p log p in nats, up to log N.
        self_share: p of the token's own patch; nan for a token without one.
        mean_distance: Σ p · distance from the token's own patch, in patch steps; nan likewise.
        object_ratio: mean p on object patches over mean p elsewhere; nan without a mask, or where
            there is nothing but object or no object.
    """

    effective_patches: Tensor
    entropy: Tensor
    self_share: Tensor
    mean_distance: Tensor
    object_ratio: Tensor


def view_spread(
    shares: Tensor,
    grid: tuple[int, int],
    *,
    own: Tensor | None = None,
    objects: Tensor | None = None,
) -> ViewSpread:
    """Spread of views with patch shares ``shares`` (B, T, N) on a ``grid`` of N patches.

    Args:
        own: (T,), number of each token's own patch, -1 for a token that has none. By default the
            first T - N tokens have none, and the others are the patches in their order.
        objects: bool (B, N), True on patches of an object.

    Raises:
        ValueError: shapes that do not fit each other, or a token without any share.
    """
    batch, tokens, patches = shares.shape
    if patches != grid[0] * grid[1]:
        raise ValueError(f"shares of {patches} patches do not fit a grid of {grid[0]}x{grid[1]}")
    if objects is not None and objects.shape != (batch, patches):
        raise ValueError(
            f"objects has shape {tuple(objects.shape)}; give ({batch}, {patches}), bool"
        )
    if own is None:
        own = torch.arange(tokens) - (tokens - patches)
        own = own.clamp_min(-1)
    total_BT1 = shares.sum(-1, keepdim=True)
    if not bool((total_BT1 > 0).all()):
        raise ValueError("a token has no share of any patch; leave it out")
    p_BTN = shares / total_BT1
    own = own.to(shares.device)
    has_T = own >= 0
    nan = torch.full((batch, tokens), math.nan, dtype=p_BTN.dtype, device=p_BTN.device)
    place_T = own.clamp_min(0)
    self_BT = p_BTN.gather(2, place_T.expand(batch, -1)[..., None])[..., 0]
    distance_TN = token_distances(grid).to(p_BTN)[place_T]
    return ViewSpread(
        effective_patches=1 / p_BTN.square().sum(-1),
        entropy=torch.special.entr(p_BTN).sum(-1),
        self_share=torch.where(has_T, self_BT, nan),
        mean_distance=torch.where(has_T, (p_BTN * distance_TN).sum(-1), nan),
        object_ratio=nan if objects is None else _object_ratio(p_BTN, objects),
    )


def _object_ratio(p_BTN: Tensor, objects_BN: Tensor) -> Tensor:
    inside_B1N = objects_BN[:, None].to(p_BTN)
    outside_B1N = 1 - inside_B1N
    on = (p_BTN * inside_B1N).sum(-1) / inside_B1N.sum(-1)
    off = (p_BTN * outside_B1N).sum(-1) / outside_B1N.sum(-1)
    return on / off
