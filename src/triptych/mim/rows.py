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

from triptych.mim.plans import plan_groups
from triptych.mim.windows import WindowLattice

# What moving a slot's query, key, value and output costs, in pairs of slots attended.
# A training step of Swin-T at 224 px on a CPU is as fast with 16 and 4 % slower with 256.
PAIRS_PER_SLOT = 64


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
        index = np.full(count, -1, dtype=np.int64)
        index[slot_N] = np.arange(len(slot_N))
        empty = index < 0
        return cls(
            torch.from_numpy(np.maximum(index, 0)),
            torch.from_numpy(slot_N.astype(np.int64)),
            torch.from_numpy(empty) if empty.any() else None,
        )

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
        """Bias table row of each pair of slots, int32 (R, G, G); ``table_rows`` = no attention."""
        position, window = self.position, self.window
        index_RGG = position[:, :, None] - position[:, None, :] + self.centre
        apart_RGG = window[:, :, None] != window[:, None, :]
        return index_RGG.masked_fill_(apart_RGG, self.table_rows)

    def _map(self, move: Any) -> Self:
        moved = _mapped(self, move, ("window", "position", "null"))
        return replace(moved, slots=None if self.slots is None else self.slots._map(move))


def pack_rows(lattice: WindowLattice, tokens_PN: np.ndarray, channels: int) -> WindowRows:
    """Lay the visible tokens (numbers on the grid, per plan) into rows for one lattice.

    Windows of all samples are packed together, so a row may hold windows of several samples.
    """
    plans, tokens = tokens_PN.shape
    first_window = lattice.num_windows * np.arange(plans)[:, None]
    window = (lattice.window[tokens_PN] + first_window).ravel()
    position = lattice.position[tokens_PN].ravel()
    pad_window, pad_position = _seen_padding(lattice, window, first_window)
    window = np.concatenate((window, pad_window))
    position = np.concatenate((position, pad_position))
    counts = np.bincount(window, minlength=lattice.num_windows * plans)
    plan = plan_groups(counts, channels, projections=0, thorough=False)
    packed_cost = plan.num_groups * plan.capacity * (plan.capacity + PAIRS_PER_SLOT)
    if not len(pad_window) and plans * tokens**2 <= packed_cost:
        return _rows(lattice, window, position, None, (plans, tokens), 0)
    slot = _slots(window, counts, plan.assignment, plan.capacity)
    return _rows(lattice, window, position, slot, (plan.num_groups, plan.capacity), len(pad_window))


def _seen_padding(
    lattice: WindowLattice, window: np.ndarray, first_window: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Windows and positions of the padding that shares a window with a visible token."""
    plans = len(first_window)
    has_token = np.zeros(lattice.num_windows * plans, dtype=bool)
    has_token[window] = True
    pad_window = (lattice.pad_window[None, :] + first_window).ravel()
    pad_position = np.tile(lattice.pad_position, plans)
    seen = has_token[pad_window]
    return pad_window[seen], pad_position[seen]


def _slots(window: np.ndarray, counts: np.ndarray, group: np.ndarray, capacity: int) -> np.ndarray:
    """The slot of each token: windows of a group follow each other in its row."""
    order = np.argsort(group, kind="stable")
    ahead = np.cumsum(counts[order]) - counts[order]
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    first_slot = np.empty(len(counts), dtype=np.int64)
    first_slot[order] = group[order] * capacity + ahead - ahead[starts][group[order]]
    by_window = np.argsort(window, kind="stable")
    begin = np.cumsum(counts) - counts
    slot = np.empty(len(window), dtype=np.int64)
    slot[by_window] = (
        np.arange(len(window)) - begin[window[by_window]] + first_slot[window[by_window]]
    )
    return slot


def _rows(
    lattice: WindowLattice,
    window: np.ndarray,
    position: np.ndarray,
    slot: np.ndarray | None,
    shape: tuple[int, int],
    padding: int,
) -> WindowRows:
    tokens = len(window) - padding
    place = np.arange(tokens) if slot is None else slot
    size = shape[0] * shape[1]
    window_S = np.full(size, -1, dtype=np.int32)
    position_S = np.zeros(size, dtype=np.int32)
    window_S[place], position_S[place] = window, position
    null_S = np.zeros(size, dtype=bool)
    null_S[place[tokens:]] = True
    return WindowRows(
        slots=None if slot is None else Slots.of(slot[:tokens], size),
        window=torch.from_numpy(window_S).view(shape),
        position=torch.from_numpy(position_S).view(shape),
        null=torch.from_numpy(null_S).view(shape) if padding else None,
        centre=lattice.centre,
        table_rows=lattice.table_rows,
    )


def _mapped(value: Any, move: Any, names: tuple[str, ...]) -> Any:
    tensors = {name: getattr(value, name) for name in names}
    return replace(value, **{n: None if t is None else move(t) for n, t in tensors.items()})
