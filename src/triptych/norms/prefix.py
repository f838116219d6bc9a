"""Prefix tokens (cls and the like) and the neighbourhoods of DTN: three ways to let them meet.

"own": a prefix token has its own statistics alone, and no neighbourhood holds it. "source": it is
moreover a source of every token of the grid, with a learned score; it has no position, so the
score is one number for each head and prefix token. "member": it is a target too, of the whole
grid, all of whose tokens lie equally far from it (score 0), and of the prefix tokens. A class
token that joins late, the fourth way, is a matter of the backbone.

Shapes: B batch, N tokens of the grid that are held, P prefix tokens, S = P + 1 parts of a mixture,
M 1 or B (visible sets), H heads, D channels a head, Y rows, X columns, T = Y·X.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.norms.position_weights import axis_scores
from triptych.norms.statistics import ABSENT
from triptych.tokens import TokenGrid, VisibleTokens

PREFIXES = ("own", "source", "member")

Moments = tuple[Tensor, Tensor]


def check_prefix(prefix: str, prefix_tokens: int, pool_to: int | None) -> None:
    """Refuse a policy that is unknown, or that has nothing to act on.

    Raises:
        ValueError: as said.
    """
    if prefix not in PREFIXES:
        raise ValueError(f"prefix must be 'own', 'source' or 'member', got {prefix!r}")
    if prefix != "own" and prefix_tokens == 0:
        raise ValueError(f"prefix={prefix!r} needs prefix tokens, but prefix_tokens=0")
    if prefix != "own" and pool_to is not None:
        raise ValueError(
            f"prefix={prefix!r} needs exact statistics, but pool_to={pool_to}; leave pool_to None"
        )


def moments_with_prefix(
    prefix_BPHD: Tensor,
    moments: Moments,
    score_HP: Tensor,
    weight_H3: Tensor,
    grid: TokenGrid,
    visible: VisibleTokens | None,
) -> Moments:
    """Neighbourhood moments of the tokens of the grid with the prefix tokens as further sources.

    A prefix token of score c takes the share exp(c) / (exp(c) + Z_j) of target j, where Z_j is
    what the (visible) tokens of the grid weigh there: the exact correction of rank one that
    leaves the grid's own sum separable.

    Args:
        prefix_BPHD: prepared prefix tokens.
        moments: mean and variance over the grid alone, both (B, N, H, D).
        score_HP: learned scores.
        weight_H3: position weights, in x's dtype.
        grid: where the tokens lie.
        visible: which of them are sources; all if None.
    """
    return _mix_in(moments, prefix_BPHD, score_HP, log_partition(weight_H3, grid, visible))


def moments_of_prefix(
    prefix_BPHD: Tensor, grid_BNHD: Tensor, score_HP: Tensor, visible: VisibleTokens | None
) -> Moments:
    """Neighbourhood moments of prefix tokens as targets, (B, 1, H, D): the same for all of them.

    ``grid_BNHD`` holds 0 at absent tokens, and each of the visible ones has score 0.
    """
    count = grid_BNHD.new_full((1,), grid_BNHD.shape[1])
    kept_MN11 = None
    if visible is not None and visible.index is None:
        count = visible.mask.sum(1).to(grid_BNHD.dtype)
        kept_MN11 = visible.mask[..., None, None]
    divisor_M111 = count.clamp_min(1)[:, None, None, None]
    mean_B1HD = grid_BNHD.sum(1, keepdim=True) / divisor_M111
    offset_BNHD = grid_BNHD - mean_B1HD
    if kept_MN11 is not None:
        offset_BNHD = offset_BNHD.masked_fill(~kept_MN11, 0)
    variance_B1HD = offset_BNHD.square().sum(1, keepdim=True) / divisor_M111
    log_count_M1H = count.log()[:, None, None].expand(-1, 1, len(score_HP))
    return _mix_in((mean_B1HD, variance_B1HD), prefix_BPHD, score_HP, log_count_M1H)


def log_partition(
    weight_H3: Tensor, grid: TokenGrid, visible: VisibleTokens | None = None
) -> Tensor:
    """Logarithm of what the (visible) sources weigh at every held target, (M, N, H)."""
    along_x_H, along_y_H, squared_H = weight_H3.unbind(1)
    scores_y_HYY = axis_scores(along_y_H, squared_H, grid.height)
    scores_x_HXX = axis_scores(along_x_H, squared_H, grid.width)
    if visible is None:
        log_y_HY1 = scores_y_HYY.logsumexp(1)[:, :, None]
        log_x_H1X = scores_x_HXX.logsumexp(1)[:, None, :]
        return (log_y_HY1 + log_x_H1X).flatten(1).mT[None]
    absent_MYX = ~visible.mask.view(-1, grid.height, grid.width)
    logits_MHYXX = scores_x_HXX[:, None].masked_fill(absent_MYX[:, None, :, :, None], ABSENT)
    # [source row, target row, target column]: first the sources of a row, then the rows.
    rows_MHY1X = logits_MHYXX.logsumexp(3)[:, :, :, None]
    log_MHYX = (scores_y_HYY[..., None] + rows_MHY1X).logsumexp(2)
    return visible.from_grid(log_MHYX.flatten(2).mT[..., None]).squeeze(3)


def _mix_in(moments: Moments, prefix_BPHD: Tensor, score_HP: Tensor, log_MNH: Tensor) -> Moments:
    """Moments of the mixture of a neighbourhood that weighs exp(log) with the prefix tokens.

    The variance is put together from differences of means, so that nothing cancels.
    """
    mean_BNHD, variance_BNHD = moments
    score_MNHP = score_HP.expand(*log_MNH.shape[:2], -1, -1)
    share_MNHS = torch.cat((log_MNH[..., None], score_MNHP), 3).softmax(3)
    own_MNH1, prefix_share_MNHP = share_MNHS[..., :1], share_MNHS[..., 1:]
    sources_BHPD = prefix_BPHD.transpose(1, 2)
    joint_BNHD = own_MNH1 * mean_BNHD + torch.einsum(
        "bnhp,bhpd->bnhd", prefix_share_MNHP.expand(len(mean_BNHD), -1, -1, -1), sources_BHPD
    )
    spread_BNHD = own_MNH1 * (variance_BNHD + (mean_BNHD - joint_BNHD).square())
    for index in range(prefix_BPHD.shape[1]):
        offset_BNHD = prefix_BPHD[:, index : index + 1] - joint_BNHD
        spread_BNHD = spread_BNHD + prefix_share_MNHP[..., index, None] * offset_BNHD.square()
    return joint_BNHD, spread_BNHD
