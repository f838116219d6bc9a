"""Everything that an encoder needs to know about a mask, worked out on the CPU beforehand.

Shapes: B batch, P plans (1 for the whole batch, or B), L mask units, N visible tokens of a stage,
T tokens of a stage's grid, M tokens after merging.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.choices import Grouping
from triptych.mim.plan_buffer import PackedPlan
from triptych.mim.rows import Slots, WindowRows, pack_rows
from triptych.mim.sparse_conv_plan import (
    Cells,
    Convolution,
    ConvolutionPlan,
    plan_by_unit,
    plan_cells,
    plan_convolution,
)
from triptych.mim.sparse_conv_spconv import has_cuda_build
from triptych.mim.windows import Lattice, Pair, window_lattice

WindowKey = tuple[Pair, Pair]  # window (height, width), shift (rows, columns)


@dataclass(frozen=True)
class StageShape:
    """What a plan depends on in one stage: token grid, channels, and what its blocks look at.

    ``windows`` of its attention, sides of the square ``cells`` that it reduces keys by, and
    ``convolutions`` that reach beyond a cell: with a stride, those of the stage before (in the
    first stage, of the image).
    """

    grid: Pair
    channels: int
    windows: tuple[WindowKey, ...] = ()
    cells: tuple[int, ...] = ()
    convolutions: tuple[Convolution, ...] = ()


@dataclass(frozen=True)
class StagePlan:
    """One stage: which tokens are visible, how they come from the stage before, and the rows.

    ``visible`` is (P, T). ``tokens`` (P, N) numbers the visible tokens on the grid, in row-major
    order; ``children`` puts the four tokens that each of them is merged from side by side (None
    in the first stage). ``by_unit`` lays the tokens unit by unit (None without convolutions).
    """

    visible: Tensor
    tokens: Tensor
    children: Slots | None
    rows: Mapping[WindowKey, WindowRows]
    cells: Mapping[int, Cells]
    convolutions: Mapping[Convolution, ConvolutionPlan]
    by_unit: Slots | None

    def map(self, move: Callable[[Tensor], Tensor]) -> StagePlan:
        """The same plan with every tensor moved."""
        return StagePlan(
            move(self.visible),
            move(self.tokens),
            None if self.children is None else self.children._map(move),
            {key: rows._map(move) for key, rows in self.rows.items()},
            {side: cells.map(move) for side, cells in self.cells.items()},
            {key: plan.map(move) for key, plan in self.convolutions.items()},
            None if self.by_unit is None else self.by_unit._map(move),
        )


@dataclass(frozen=True)
class MaskPlan:
    """The plan of a mask for one encoder; made on the CPU, moved with the batch.

    ``hidden`` (P, L - K) numbers the hidden units, ascending.
    """

    num_plans: int
    num_units: int
    num_visible: int
    hidden: Tensor
    stages: tuple[StagePlan, ...]

    @cached_property
    def packed(self) -> PackedPlan:
        """The plan with all its tensors in one buffer, which is how it travels."""
        return PackedPlan.of(self)

    def __reduce__(self) -> tuple[Callable[..., MaskPlan], tuple[Any, ...]]:
        outline = self.packed.outline
        return _arrive, (self.packed.buffer, *(getattr(outline, f.name) for f in fields(self)))

    def to(self, device: torch.device | str, non_blocking: bool = True) -> MaskPlan:
        """The plan on ``device``, moved by one copy."""
        if self.stages[0].tokens.device == torch.device(device):
            return self
        buffer = self.packed.buffer.to(device, non_blocking=non_blocking)
        return PackedPlan(buffer, self.packed.outline).unpack()

    def pin_memory(self) -> MaskPlan:
        """The plan in page-locked memory, which a device reads without being waited for."""
        return PackedPlan(self.packed.buffer.pin_memory(), self.packed.outline).unpack()

    def _map(self, move: Callable[[Tensor], Tensor]) -> MaskPlan:
        stages = tuple(stage.map(move) for stage in self.stages)
        return replace(self, hidden=move(self.hidden), stages=stages)


def _arrive(buffer: Tensor, *outline: Any) -> MaskPlan:
    return PackedPlan(buffer, MaskPlan(*outline)).unpack()


def check_mask(mask: Tensor, num_units: int) -> Tensor:
    """Return ``mask``, (L,) or (B, L), as (P, L) in host memory, with P = 1 if all rows agree.

    Raises:
        ValueError: not bool, another number of units, samples that hide different numbers of
            units, or no unit visible.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool (True = hidden), got {mask.dtype}")
    if mask.ndim not in (1, 2) or mask.shape[-1] != num_units:
        raise ValueError(
            f"mask must have shape ({num_units},) or (B, {num_units}), got {tuple(mask.shape)}"
        )
    mask_PL = mask.detach().cpu().reshape(-1, num_units)
    units_PL = mask_PL.numpy()
    hidden_P = np.count_nonzero(units_PL, axis=1)
    low, high = int(hidden_P.min()), int(hidden_P.max())
    if low != high:
        raise ValueError(
            f"every sample must hide the same number of mask units, got {low} to {high} of "
            f"{num_units}"
        )
    if low == num_units:
        raise ValueError(f"mask hides all {num_units} mask units; at least one must stay visible")
    return mask_PL[:1] if (units_PL == units_PL[:1]).all() else mask_PL


def plan_mask(
    mask_PL: Tensor,
    unit_grid: Pair,
    stages: Sequence[StageShape],
    lattice: Lattice,
    grouping: Grouping = Grouping.cheapest,
) -> MaskPlan:
    """Plan a mask that :func:`check_mask` has passed; stages in the order of the network."""
    visible_PUV = (~mask_PL).numpy().reshape(-1, *unit_grid)
    plans: list[StagePlan] = []
    before: np.ndarray | None = None
    for stage in stages:
        repeat = stage.grid[0] // unit_grid[0], stage.grid[1] // unit_grid[1]
        visible_PHW = visible_PUV.repeat(repeat[0], axis=1).repeat(repeat[1], axis=2)
        plans.append(_plan_stage(stage, visible_PUV, visible_PHW, before, lattice, grouping))
        before = visible_PHW
    return MaskPlan(
        num_plans=len(visible_PUV),
        num_units=mask_PL.shape[1],
        num_visible=int(visible_PUV[0].sum()),
        hidden=torch.from_numpy(np.nonzero(mask_PL.numpy())[1].reshape(len(mask_PL), -1)),
        stages=tuple(plans),
    )


def _plan_stage(
    stage: StageShape,
    visible_PUV: np.ndarray,
    visible_PHW: np.ndarray,
    before: np.ndarray | None,
    lattice: Lattice,
    grouping: Grouping,
) -> StagePlan:
    visible_PT = visible_PHW.reshape(len(visible_PHW), -1)
    tokens_PN = (np.flatnonzero(visible_PT) % visible_PT.shape[1]).reshape(len(visible_PT), -1)
    rows = {
        (window, shift): pack_rows(
            window_lattice(stage.grid, window, shift, lattice),
            tokens_PN,
            stage.channels,
            grouping,
        )
        for window, shift in dict.fromkeys(stage.windows)
    }
    return StagePlan(
        visible=torch.from_numpy(visible_PT),
        tokens=torch.from_numpy(tokens_PN),
        children=None if before is None else _children(tokens_PN, visible_PHW, before),
        rows=rows,
        cells={side: plan_cells(visible_PHW, side) for side in dict.fromkeys(stage.cells)},
        convolutions=_convolutions(stage, visible_PUV, before),
        by_unit=plan_by_unit(visible_PUV, _unit(stage.grid, visible_PUV))
        if stage.convolutions
        else None,
    )


def _convolutions(
    stage: StageShape, visible_PUV: np.ndarray, before: np.ndarray | None
) -> dict[Convolution, ConvolutionPlan]:
    """Plans of the convolutions of tokens; those of pixels need none."""
    plans = {}
    for convolution in dict.fromkeys(stage.convolutions):
        own = convolution.stride == (1, 1)
        if not own and before is None:
            continue
        height, width = stage.grid if own or before is None else before.shape[1:]
        pairs = not convolution.grouped and has_cuda_build()
        plans[convolution] = plan_convolution(
            convolution, visible_PUV, (height, width), pairs=pairs
        )
    return plans


def _unit(grid: Pair, visible_PUV: np.ndarray) -> Pair:
    return grid[0] // visible_PUV.shape[1], grid[1] // visible_PUV.shape[2]


def _children(tokens_PM: np.ndarray, visible_PHW: np.ndarray, before: np.ndarray) -> Slots:
    """Slot 4·m + child of each token before merging; Swin counts children down, then across."""
    width, width_before = visible_PHW.shape[2], before.shape[2]
    row, column = 2 * (tokens_PM // width), 2 * (tokens_PM % width)
    down, across = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    child_PMF = (row[..., None] + down) * width_before + column[..., None] + across
    earlier = np.flatnonzero(before)
    rank = np.empty(before.size, dtype=np.int64)  # number of each visible token, through the batch
    rank[earlier] = np.arange(len(earlier))
    first = np.arange(len(before))[:, None, None] * before[0].size
    token_S = rank[(child_PMF + first).ravel()]
    slot_N = np.empty_like(token_S)
    slot_N[token_S] = np.arange(len(token_S))
    return Slots.of(slot_N, len(slot_N))
