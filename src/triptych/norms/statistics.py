"""The two kinds of statistics that DTN mixes: of a token, and of its neighbourhood.

Second moments are centred, so that a common offset costs no precision: a constant for each sample
and channel is taken off first, which changes neither variance nor gradient.

Shapes: B batch, T tokens of a grid of Y rows and X columns, K visible tokens, H heads, D channels
a head, M 1 or B (visible sets), G = B / M samples that share one visible set, E = 2·G·D moments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from triptych.norms.banded import ABSENT, band_of, in_one_piece, smooth_banded
from triptych.norms.position_weights import axis_scores, token_scores
from triptych.tokens import TokenGrid, VisibleTokens

Cell = tuple[int, int]


def token_moments(x_BNHD: Tensor, *, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of each token over all its channels, both (B, N, 1, 1)."""
    mean = x_BNHD.mean((2, 3), keepdim=True)
    channels = x_BNHD.shape[2] * x_BNHD.shape[3]
    total = (x_BNHD - mean).square().sum((2, 3), keepdim=True)
    return mean, total / (channels - 1 if unbiased else channels)


def neighbourhood_moments(
    x_BNHD: Tensor,
    weight_H3: Tensor,
    grid: TokenGrid,
    visible: VisibleTokens | None = None,
    cell: Cell = (1, 1),
) -> tuple[Tensor, Tensor]:
    """Position-weighted mean and variance of every channel around every token, both like x.

    The grid is summed axis by axis, T·(Y + X) multiply-adds a channel, unless the visible tokens
    are so few that all their pairs cost less. A long sequence is summed within the band where its
    position weights are not negligible. When x holds the visible tokens alone, the host
    never waits for an accelerator to choose the way.

    Args:
        x_BNHD: tokens of the grid (N = T), or the visible ones in row-major order (N = K).
        weight_H3: position weights, in x's dtype; see :class:`PositionWeights`.
        grid: where the tokens lie.
        visible: which tokens are sources; all if None.
        cell: tokens (down, across) averaged into one source; neighbourhoods are then taken on the
            grid of cells, and the tokens of a cell share their result.
    """
    if visible is None:
        return _moments_on_grid(x_BNHD, weight_H3, grid, cell)
    few = x_BNHD.shape[1] ** 2 <= grid.count * (grid.height + grid.width)
    if visible.index is not None and few and cell == (1, 1):
        kernel_MHKK = token_scores(weight_H3, visible.index, grid).softmax(2)
        return _centred_moments(x_BNHD, None, lambda x: _smooth_pairs(x, kernel_MHKK))
    may_wait = visible.index is None or x_BNHD.device.type == "cpu"
    x_BTHD = visible.on_grid(x_BNHD)
    mean, variance = _moments_on_grid(x_BTHD, weight_H3, grid, cell, visible.mask, may_wait)
    return visible.from_grid(mean), visible.from_grid(variance)


def _moments_on_grid(
    x_BTHD: Tensor,
    weight_H3: Tensor,
    grid: TokenGrid,
    cell: Cell,
    visible_MT: Tensor | None = None,
    may_wait: bool = False,
) -> tuple[Tensor, Tensor]:
    if cell != (1, 1):
        cells, visible_MT = pool_to_cells(x_BTHD, grid, cell, visible_MT)
        coarse = TokenGrid(grid.height // cell[0], grid.width // cell[1])
        moments = _moments_on_grid(cells, weight_H3, coarse, (1, 1), visible_MT, may_wait)
        return spread_cells(moments[0], grid, cell), spread_cells(moments[1], grid, cell)
    whole = visible_MT is None or (may_wait and grid.height == 1 and in_one_piece(visible_MT))
    band = band_of(weight_H3, grid.width) if grid.height == 1 and whole else None
    if band is not None:
        return _centred_moments(
            x_BTHD, visible_MT, lambda x: smooth_banded(x, weight_H3, band, visible_MT)
        )
    along_x_H, along_y_H, squared_H = weight_H3.unbind(1)
    scores_y_HYY = axis_scores(along_y_H, squared_H, grid.height)
    scores_x_HXX = axis_scores(along_x_H, squared_H, grid.width)
    kernel_y_HYY, kernel_x_HXX = scores_y_HYY.softmax(1), scores_x_HXX.softmax(1)
    if visible_MT is None:
        return _centred_moments(x_BTHD, None, lambda x: _smooth(x, kernel_y_HYY, kernel_x_HXX))
    if may_wait:
        share_MTH1 = _visible_share(kernel_y_HYY, kernel_x_HXX, visible_MT)
        if share_MTH1.detach().min() > 1e8 * torch.finfo(share_MTH1.dtype).tiny:
            return _centred_moments(
                x_BTHD,
                visible_MT,
                lambda x: _divide(_smooth(x, kernel_y_HYY, kernel_x_HXX), share_MTH1),
            )
    kernels = visible_kernels(scores_y_HYY, scores_x_HXX, visible_MT)
    return _centred_moments(x_BTHD, visible_MT, lambda x: _smooth_visible(x, *kernels))


def _visible_share(kernel_y_HYY: Tensor, kernel_x_HXX: Tensor, visible_MT: Tensor) -> Tensor:
    """How much of each target's weight lies on visible sources; 1 at absent targets."""
    mask_MTH1 = visible_MT[..., None, None].to(kernel_y_HYY.dtype)
    share_MTH1, _ = _smooth(
        mask_MTH1.expand(-1, -1, len(kernel_y_HYY), -1), kernel_y_HYY, kernel_x_HXX
    )
    return share_MTH1.masked_fill(~visible_MT[..., None, None], 1)


def _divide(moments: tuple[Tensor, Tensor], share_MTH1: Tensor) -> tuple[Tensor, Tensor]:
    return moments[0] / share_MTH1, moments[1] / share_MTH1


def _centred_moments(
    x_BNHD: Tensor,
    visible_MT: Tensor | None,
    smooth: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Mean and variance from ``smooth``, which gives E[x] and E[x²] around every token."""
    centre_B1HD = _channel_mean(x_BNHD, visible_MT)
    centred_BNHD = x_BNHD - centre_B1HD
    if visible_MT is not None:
        centred_BNHD = centred_BNHD.masked_fill(~visible_MT[..., None, None], 0)
    mean_BNHD, square_BNHD = smooth(centred_BNHD)
    # Rounding can leave a variance a little below 0.
    return mean_BNHD + centre_B1HD, (square_BNHD - mean_BNHD.square()).clamp_min(0)


def _channel_mean(x_BNHD: Tensor, visible_MT: Tensor | None) -> Tensor:
    """A constant near the tokens; exact results do not depend on it, so nor do gradients."""
    x_BNHD = x_BNHD.detach()
    if visible_MT is None:
        return x_BNHD.mean(1, keepdim=True)
    count_M = visible_MT.sum(1).clamp_min(1)
    return x_BNHD.sum(1, keepdim=True) / count_M[:, None, None, None]


def _smooth(x_BTHD: Tensor, kernel_y_HYY: Tensor, kernel_x_HXX: Tensor) -> tuple[Tensor, Tensor]:
    """E[x] and E[x²] under P_y ⊗ P_x, tokens laid out so that each axis is one batched product."""
    height, width = kernel_y_HYY.shape[1], kernel_x_HXX.shape[1]
    batch, _, heads, features = x_BTHD.shape
    x_HTBD = x_BTHD.permute(2, 1, 0, 3)
    moments_HYE = torch.stack((x_HTBD, x_HTBD.square()), 2).reshape(heads, height, -1)
    by_row_HYXE = (kernel_y_HYY.mT @ moments_HYE).view(heads, height, width, -1)
    both_HYXE = kernel_x_HXX.mT[:, None] @ by_row_HYXE
    both_HT2BD = both_HYXE.view(heads, height * width, 2, batch, features)
    mean_HTBD, square_HTBD = both_HT2BD.unbind(2)
    return mean_HTBD.permute(2, 1, 0, 3), square_HTBD.permute(2, 1, 0, 3)


def _smooth_pairs(x_BKHD: Tensor, kernel_MHKK: Tensor) -> tuple[Tensor, Tensor]:
    """E[x] and E[x²] over all pairs of the visible tokens, with kernels [source, target]."""
    sets, heads, count, _ = kernel_MHKK.shape
    x_MGKHD = x_BKHD.view(sets, -1, count, heads, x_BKHD.shape[3])
    x_MHKGD = x_MGKHD.permute(0, 3, 2, 1, 4)
    moments_MHKE = torch.stack((x_MHKGD, x_MHKGD.square()), 3).flatten(3)
    both = (kernel_MHKK.mT @ moments_MHKE).view(sets, heads, count, 2, *x_MHKGD.shape[3:])
    mean_BKHD, square_BKHD = both.permute(3, 0, 4, 2, 1, 5).reshape(2, *x_BKHD.shape).unbind(0)
    return mean_BKHD, square_BKHD


def _smooth_visible(
    x_BTHD: Tensor, within_MHYXX: Tensor, over_MHXYY: Tensor
) -> tuple[Tensor, Tensor]:
    """E[x] and E[x²] over the visible sources, with the kernels of :func:`visible_kernels`."""
    sets, heads, height, width, _ = within_MHYXX.shape
    batch, _, _, features = x_BTHD.shape
    x_MGYXHD = x_BTHD.view(sets, -1, height, width, heads, features)
    x_MHYXGD = x_MGYXHD.permute(0, 4, 2, 3, 1, 5)
    moments_MHYXE = torch.stack((x_MHYXGD, x_MHYXGD.square()), 4).flatten(4)
    by_row_MHXYE = (within_MHYXX.mT @ moments_MHYXE).transpose(2, 3)
    both_MHXYE = over_MHXYY.mT @ by_row_MHXYE
    both = both_MHXYE.view(sets, heads, width, height, 2, batch // sets, features)
    both_2MGYXHD = both.permute(4, 0, 5, 3, 2, 1, 6)
    mean_BTHD, square_BTHD = both_2MGYXHD.reshape(2, *x_BTHD.shape).unbind(0)
    return mean_BTHD, square_BTHD


def visible_kernels(
    scores_y_HYY: Tensor, scores_x_HXX: Tensor, visible_MT: Tensor
) -> tuple[Tensor, Tensor]:
    """Kernels within rows (M, H, Y, X, X) and over rows (M, H, X, Y, Y), [source, target].

    First within each row, then over rows weighted by what the row's visible tokens weigh. Either
    step is a softmax over visible sources alone, so nothing underflows however far the visible
    tokens lie from where the position weights point; in the ratio of two sums over the grid, which
    is cheaper, both would.
    """
    height, width = scores_y_HYY.shape[1], scores_x_HXX.shape[1]
    absent_MYX = ~visible_MT.view(-1, height, width)
    logits_MHYXX = scores_x_HXX[:, None].masked_fill(absent_MYX[:, None, :, :, None], ABSENT)
    weight_MHYX = logits_MHYXX.logsumexp(3)
    within_MHYXX = (logits_MHYXX - weight_MHYX[:, :, :, None]).exp()
    logits_MHXYY = scores_y_HYY[:, None] + weight_MHYX.transpose(2, 3)[..., None]
    return within_MHYXX, logits_MHXYY.softmax(3)


def pool_to_cells(
    x_BTHD: Tensor, grid: TokenGrid, cell: Cell, visible_MT: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Average the (visible) tokens of each cell; a cell is visible if one of its tokens is."""
    batch, _, heads, features = x_BTHD.shape
    rows, columns = grid.height // cell[0], grid.width // cell[1]
    x_BYpXpHD = x_BTHD.reshape(batch, rows, cell[0], columns, cell[1], heads, features)
    if visible_MT is None:
        return x_BYpXpHD.mean((2, 4)).flatten(1, 2), None
    visible_MYpXp = visible_MT.view(-1, rows, cell[0], columns, cell[1])
    count_MYX = visible_MYpXp.sum((2, 4))
    cells_BYXHD = x_BYpXpHD.sum((2, 4)) / count_MYX.clamp_min(1)[..., None, None]
    return cells_BYXHD.flatten(1, 2), count_MYX.flatten(1) > 0


def spread_cells(cells_BTHD: Tensor, grid: TokenGrid, cell: Cell) -> Tensor:
    """Give every token of ``grid`` the value of its cell, (B, T, H, D)."""
    batch, _, heads, features = cells_BTHD.shape
    rows, columns = grid.height // cell[0], grid.width // cell[1]
    x_BYXHD = cells_BTHD.reshape(batch, rows, 1, columns, 1, heads, features)
    spread = x_BYXHD.expand(batch, rows, cell[0], columns, cell[1], heads, features)
    return spread.reshape(batch, grid.count, heads, features)
