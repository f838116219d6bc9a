"""Which tokens lie on which object of an image.

Shapes: O objects, (H, W) pixels, (h, w) token grid, T = h·w tokens in row-major order.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Parity = Literal["corrected", "published"]
COVERAGE = 0.4
OCCLUDED_COVERAGE = 0.15


def coverage(masks_OHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share of each token's pixels that each object covers, (O, T) in [0, 1].

    Args:
        masks_OHW: bool, one mask an object; H and W are multiples of the grid.
        grid: tokens (down, across).

    Raises:
        ValueError: the masks are no multiple of the grid.
    """
    rows, columns = grid
    if masks_OHW.ndim != 3 or masks_OHW.shape[1] % rows or masks_OHW.shape[2] % columns:
        raise ValueError(
            f"masks have shape {tuple(masks_OHW.shape)}; (objects, height, width) with multiples "
            f"of the {rows}x{columns} token grid are needed"
        )
    cell = masks_OHW.shape[1] // rows, masks_OHW.shape[2] // columns
    return F.avg_pool2d(masks_OHW.float()[:, None], cell).flatten(1)


def object_tokens(
    masks_OHW: Tensor,
    grid: tuple[int, int],
    *,
    least: float = COVERAGE,
    parity: Parity = "corrected",
) -> list[Tensor]:
    """Row-major token indices of each object (arXiv 2210.07646, released code).

    A token belongs to the object that covers most of it, if that is at least ``least`` (ties: the
    first object). ``parity="published"`` repeats the released code, which adds up the numbers of
    all objects that cover the token: where two do, it goes to a third one or to none.

    Raises:
        ValueError: as :func:`coverage`, or an unknown parity.
    """
    if parity not in ("corrected", "published"):
        raise ValueError(f"parity must be 'corrected' or 'published', got {parity!r}")
    share_OT = coverage(masks_OHW, grid)
    count = len(share_OT)
    if parity == "published":
        belongs_OT = (share_OT + (1 - least)).floor() == 1
        number_T = (torch.arange(1, count + 1)[:, None] * belongs_OT).sum(0)
    else:
        largest_T, owner_T = share_OT.max(0)
        number_T = torch.where(largest_T >= least, owner_T + 1, 0)
    return [(number_T == index + 1).nonzero()[:, 0] for index in range(count)]


def foreground_tokens(masks_OHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """bool (T,): tokens of which objects together cover more than 15 %, as for occlusion."""
    union_1HW = masks_OHW.any(0, keepdim=True)
    return coverage(union_1HW, grid)[0] > OCCLUDED_COVERAGE
