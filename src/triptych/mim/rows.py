"""Rows: the slots that tokens are gathered into, and the way back.

Shapes: B batch, P plans (1 for the whole batch, or B), N visible tokens, R rows, G slots of a row,
S slots of all rows, E values of a token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from triptych.choices import Grouping
from triptych.mim.row_plan import RowPlan, row_plan
from triptych.mim.windows import WindowLattice


class _Select(torch.autograd.Function):
    """x[:, index], whose gradient is a selection too: no atomic addition, no order of sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, empty: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, empty)
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        back, empty = ctx.saved_tensors
        grad = grads[0].index_select(1, back)
        if empty is not None:
            grad = grad.masked_fill(empty[None, :, None], 0)
        return grad, None, None, None


@dataclass(frozen=True)
class Slots:
    """A one-to-one map of tokens to slots.

    ``index`` (S) is the token in each slot (0 in a slot without token), ``inverse`` (N) the slot of
    each token, ``empty`` (S) True at slots without token, None if there are none. With a plan for
    each sample, tokens are numbered through the batch.
    """

    index: Tensor
    inverse: Tensor
    empty: Tensor | None

    @classmethod
    def of(cls, slot_N: np.ndarray, count: int) -> Slots:
        """Token i goes to slot ``slot_N[i]`` of ``count``."""
        index = np.zeros(count, dtype=np.int64)
        index[slot_N] = np.arange(len(slot_N))
        inverse = torch.from_numpy(slot_N.astype(np.int64, copy=False))
        if len(slot_N) == count:
            return cls(torch.from_numpy(index), inverse, None)
        empty = np.ones(count, dtype=bool)
        empty[slot_N] = False
        return cls(torch.from_numpy(index), inverse, torch.from_numpy(empty))

    def gather(self, x_BNC: Tensor) -> Tensor:
        """Tokens (B, N, C) to slots (B, S, C); a slot without token holds some token's values."""
        return _Select.apply(x_BNC, self.index, self.inverse, None)

    def scatter(self, x_BSC: Tensor) -> Tensor:
        """Slots (B, S, C) back to tokens (B, N, C)."""
        return _Select.apply(x_BSC, self.inverse, self.index, self.empty)

    def _map(self, move: Any) -> Self:
        return _mapped(self, move, ("index", "inverse", "empty"))


@dataclass(frozen=True)
class WindowRows:
    """The rows that one kind of window attention runs on, R rows of G slots.

    ``slots`` is None where each row is one sample's tokens in their order. ``window`` (R, G) is
    the window of each slot, -1 where it holds nothing; ``position`` (R, G) as in
    :class:`~triptych.mim.windows.WindowLattice`; ``null`` (R, G) True at slots that hold the
    backbone's padding, None if there are none.
    """

    slots: Slots | None
    window: Tensor
    position: Tensor
    null: Tensor | None
    centre: int
    table_rows: int

    def pair_index(self) -> Tensor:
        """Bias table row of each pair of slots, int64 (R, G, G); ``table_rows`` = no attention."""
        position, window = self.position, self.window
        index_RGG = position[:, :, None] - position[:, None, :] + self.centre
        apart_RGG = window[:, :, None] != window[:, None, :]
        return index_RGG.masked_fill_(apart_RGG, self.table_rows)

    def _map(self, move: Any) -> Self:
        moved = _mapped(self, move, ("window", "position", "null"))
        return replace(moved, slots=None if self.slots is None else self.slots._map(move))


def pack_rows(
    lattice: WindowLattice,
    tokens_PN: np.ndarray,
    channels: int,
    grouping: Grouping = Grouping.cheapest,
) -> WindowRows:
    """Lay the visible tokens into rows for one lattice.

    ``tokens_PN`` are their numbers on the grid. Windows of all samples are packed together, so a
    row may hold windows of several samples; not so in the published grouping.
    """
    plans, tokens = tokens_PN.shape
    token, window, number = _by_window(lattice, tokens_PN)
    pad_window, pad_position = _seen_padding(lattice, window, plans)
    held = np.bincount(window, minlength=lattice.num_windows * plans)
    padding = np.bincount(pad_window, minlength=len(held))
    counts = held + padding
    plan = row_plan(counts, lattice, (plans, tokens), channels, grouping)
    if plan is None:
        window_PN = lattice.window[tokens_PN] + lattice.num_windows * np.arange(plans)[:, None]
        return _rows(lattice, None, window_PN, lattice.position[tokens_PN])
    shape = plan.num_rows, plan.capacity
    first_slot = _first_slots(counts, plan)
    slot = _numbered(window, held, first_slot)
    window_RG = np.full(shape, -1, dtype=np.int64)
    position_RG = np.zeros(shape, dtype=np.int64)
    window_RG.ravel()[slot], position_RG.ravel()[slot] = window, lattice.position[token]
    inverse_N = np.empty(plans * tokens, dtype=np.int64)
    inverse_N[number] = slot
    slots = Slots.of(inverse_N, window_RG.size)
    null_RG = np.zeros(shape, dtype=bool) if len(lattice.pad_window) else None
    if null_RG is not None:
        pad_slot = _numbered(pad_window, padding, first_slot + held)
        window_RG.ravel()[pad_slot], position_RG.ravel()[pad_slot] = pad_window, pad_position
        null_RG.ravel()[pad_slot] = True
    return _rows(lattice, slots, window_RG, position_RG, null_RG)


def _by_window(
    lattice: WindowLattice, tokens_PN: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Visible tokens plan by plan, window by window: number on the grid, window, compact number."""
    plans, tokens = tokens_PN.shape
    window_PN = lattice.window_key[tokens_PN]
    first_P1 = np.arange(plans)[:, None]
    number = (np.argsort(window_PN, axis=1, kind="stable") + tokens * first_P1).ravel()
    window_PN = window_PN + lattice.num_windows * first_P1
    return tokens_PN.ravel()[number], window_PN.ravel()[number], number


def _seen_padding(
    lattice: WindowLattice, window: np.ndarray, plans: int
) -> tuple[np.ndarray, np.ndarray]:
    """Windows, ascending, and positions of the padding in windows that hold a visible token."""
    if not len(lattice.pad_window):
        return lattice.pad_window, lattice.pad_position
    has_token = np.zeros(lattice.num_windows * plans, dtype=bool)
    has_token[window] = True
    order = np.argsort(lattice.pad_window, kind="stable")
    first_window = lattice.num_windows * np.arange(plans)[:, None]
    pad_window = (lattice.pad_window[order] + first_window).ravel()
    pad_position = np.tile(lattice.pad_position[order], plans)
    seen = has_token[pad_window]
    return pad_window[seen], pad_position[seen]


def _first_slots(counts: np.ndarray, plan: RowPlan) -> np.ndarray:
    """First slot of each window: the windows of a group follow each other in its row."""
    group = plan.assignment
    order = np.argsort(group, kind="stable")
    ahead = np.cumsum(counts[order]) - counts[order]
    starts = np.searchsorted(group[order], np.arange(plan.num_rows))
    starts = np.minimum(starts, len(order) - 1)  # rows without windows
    first_slot = np.empty(len(counts), dtype=np.int64)
    first_slot[order] = group[order] * plan.capacity + ahead - ahead[starts][group[order]]
    return first_slot


def _numbered(window: np.ndarray, counts: np.ndarray, first: np.ndarray) -> np.ndarray:
    """``first`` of its window, plus its place in it, for each item of ascending ``window``."""
    begin = np.cumsum(counts) - counts
    return np.arange(len(window)) + (first - begin)[window]


def _rows(
    lattice: WindowLattice,
    slots: Slots | None,
    window_RG: np.ndarray,
    position_RG: np.ndarray,
    null_RG: np.ndarray | None = None,
) -> WindowRows:
    return WindowRows(
        slots=slots,
        window=torch.from_numpy(window_RG),
        position=torch.from_numpy(position_RG),
        null=None if null_RG is None else torch.from_numpy(null_RG),
        centre=lattice.centre,
        table_rows=lattice.table_rows,
    )


def _mapped(value: Any, move: Any, names: tuple[str, ...]) -> Any:
    tensors = {name: getattr(value, name) for name in names}
    return replace(value, **{n: None if t is None else move(t) for n, t in tensors.items()})
