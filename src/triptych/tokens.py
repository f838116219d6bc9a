"""Where tokens lie: the token grid, and which of its tokens are visible.

Shapes: B batch, M 1 or B (one visible set for the batch, or one for each sample), T tokens of the
grid in row-major order, K visible tokens, N either T or K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """``height`` rows of ``width`` tokens, numbered row by row; a sequence has one row.

    Raises:
        ValueError: a side is below 1.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a token grid needs sides of at least 1, got {self}")

    @classmethod
    def of(cls, size: int | tuple[int, int]) -> TokenGrid:
        """The grid of size (height, width), or the sequence of an int length."""
        if isinstance(size, int):
            return cls(1, size)
        if len(size) != 2:
            raise ValueError(f"a grid size is (height, width) or an int, got {tuple(size)}")
        return cls(int(size[0]), int(size[1]))

    @property
    def count(self) -> int:
        """Number of tokens T."""
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass(frozen=True)
class VisibleTokens:
    """The visible part of a token grid, and how a token tensor holds it.

    ``mask`` (M, T) is True at visible tokens. ``index`` (M, K) lists them in row-major order when
    the tensors hold only the visible tokens; it is None when they hold the whole grid.
    """

    mask: Tensor
    index: Tensor | None

    @classmethod
    def of(cls, visible: Tensor, grid: TokenGrid, batch: int, count: int) -> VisibleTokens:
        """Describe tensors (batch, count, ...) by ``visible``, bool (T,) or (batch, T).

        No value of ``visible`` is read on the host unless it lives there: on an accelerator a
        wrong number of visible tokens is found by an assertion on the device.

        Raises:
            ValueError: ``visible`` is not bool, has another shape, or marks another number of
                tokens than the ``count`` that are held.
        """
        if visible.dtype != torch.bool:
            raise ValueError(f"visible must be bool, got {visible.dtype}")
        if visible.shape not in ((grid.count,), (batch, grid.count)):
            raise ValueError(
                f"visible must have shape ({grid.count},) or ({batch}, {grid.count}) for a "
                f"{grid} grid, got {tuple(visible.shape)}"
            )
        mask_MT = visible.reshape(-1, grid.count)
        if count == grid.count:
            return cls(mask_MT, None)
        _check_count(mask_MT, count)
        # A stable sort puts the visible tokens first in their order, with no size to wait for.
        order_MT = torch.sort(~mask_MT, dim=1, stable=True).indices
        return cls(mask_MT, order_MT[:, :count])

    def on_grid(self, x_BNHD: Tensor) -> Tensor:
        """Lay tokens on the grid, (B, T, H, D); absent ones are 0 whatever they held."""
        if self.index is None:
            return x_BNHD.masked_fill(~self.mask[..., None, None], 0)
        batch, count, *features = x_BNHD.shape
        grid_BTHD = x_BNHD.new_zeros(batch, self.mask.shape[1], *features)
        index_BNHD = self.index[..., None, None].expand(batch, count, *features)
        return grid_BTHD.scatter(1, index_BNHD, x_BNHD)

    def from_grid(self, x_BTHD: Tensor) -> Tensor:
        """Take from the grid the tokens that the tensors hold, (B, N, H, D)."""
        if self.index is None:
            return x_BTHD
        batch, _, *features = x_BTHD.shape
        index_BNHD = self.index[..., None, None].expand(batch, self.index.shape[1], *features)
        return x_BTHD.gather(1, index_BNHD)


def visible_mask(visible: Tensor, grid: TokenGrid, batch: int, count: int) -> Tensor:
    """``visible`` as (M, T); refuses what :meth:`VisibleTokens.of` refuses, but does not sort."""
    if visible.dtype == torch.bool and visible.shape in ((grid.count,), (batch, grid.count)):
        mask_MT = visible.reshape(-1, grid.count)
        if count != grid.count:
            _check_count(mask_MT, count)
        return mask_MT
    return VisibleTokens.of(visible, grid, batch, count).mask


def _check_count(mask_MT: Tensor, count: int) -> None:
    counts_M = mask_MT.sum(1)
    if mask_MT.device.type != "cpu":
        torch._assert_async((counts_M == count).all(), "visible marks another number of tokens")
        return
    wrong = counts_M[counts_M != count]
    if wrong.numel():
        raise ValueError(
            f"x holds {count} tokens of the grid, but visible marks {int(wrong[0])} of "
            f"{mask_MT.shape[1]}"
        )
