"""How many rows attention runs on, how long they are, and which windows share one.

Three groupings give the same attention. ``cheapest`` makes it as cheap as possible for each mask.
``bucketed`` gives up a little of that so that shapes are nearly always the same: the capacity
follows from the grid alone and the number of rows is rounded up, which lets compiled graphs and
CUDA graphs be used again. ``published`` is GreenMIM's released code (Jan 2023): the windows of a
sample are packed greedily to the count of its fullest window, unless the sample has at most two
windows' worth of tokens, which then make one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triptych.choices import Grouping
from triptych.mim.packing import first_fit_decreasing
from triptych.mim.plans import plan_groups, published_grouping
from triptych.mim.windows import WindowLattice

# What moving a slot's query, key, value and output costs, in pairs of slots attended.
# A training step of Swin-T at 224 px on a CPU is as fast with 16 and 4 % slower with 256.
PAIRS_PER_SLOT = 64
MULTIPLE = 8  # of a bucketed capacity
BUCKETS = 8  # numbers of rows told apart between a power of two and the next, when bucketed


@dataclass(frozen=True)
class RowPlan:
    """``assignment[k]`` is the row of window k; there are ``num_rows`` of ``capacity`` slots."""

    assignment: np.ndarray
    num_rows: int
    capacity: int


def row_plan(
    counts: np.ndarray,
    lattice: WindowLattice,
    shape: tuple[int, int],
    channels: int,
    grouping: Grouping,
) -> RowPlan | None:
    """Rows for windows of ``counts`` slots, or None: each plan's tokens in their order are a row.

    Args:
        counts: tokens, and padding that is a key, of each window; of one plan after the other.
        lattice: the windows of one plan.
        shape: plans and tokens of each.
        channels: of the tokens.
        grouping: see the module.
    """
    whole_rows = shape[0] * shape[1] ** 2  # pairs, if each plan is a row
    has_padding = len(lattice.pad_window) > 0
    if grouping is Grouping.published:
        return (
            None if shape[1] <= 2 * lattice.area and not has_padding else _published(counts, shape)
        )
    if grouping is Grouping.bucketed:
        plan = _bucketed(counts, lattice, shape[0] * shape[1])
        least_rows = -(-shape[0] * shape[1] // plan.capacity)
        packed = least_rows * plan.capacity * (plan.capacity + PAIRS_PER_SLOT)
        return None if whole_rows <= packed and not has_padding else plan
    groups = plan_groups(counts, channels, projections=0, thorough=False)
    packed = groups.num_groups * groups.capacity * (groups.capacity + PAIRS_PER_SLOT)
    if whole_rows <= packed and counts.sum() == shape[0] * shape[1]:
        return None
    return RowPlan(groups.assignment, groups.num_groups, groups.capacity)


def _published(counts: np.ndarray, shape: tuple[int, int]) -> RowPlan:
    """Each plan's windows by themselves; all rows as long as the longest needs to be."""
    assignment = np.zeros(len(counts), dtype=np.int64)
    rows = 0
    for part in np.split(np.arange(len(counts)), shape[0]):
        plan = published_grouping(counts[part], int(counts[part].max()))
        assignment[part] = rows + np.maximum(plan.assignment, 0)
        rows += plan.num_groups
    return RowPlan(assignment, rows, int(counts.max()))


def _bucketed(counts: np.ndarray, lattice: WindowLattice, tokens: int) -> RowPlan:
    longest = min(lattice.largest, tokens) if not len(lattice.pad_window) else lattice.largest
    capacity = -(-longest // MULTIPLE) * MULTIPLE
    filled = np.flatnonzero(counts)
    assignment = np.zeros(len(counts), dtype=np.int64)
    assignment[filled] = first_fit_decreasing(counts[filled], capacity)
    rows = int(assignment.max()) + 1
    step = max(1, 2 ** (rows - 1).bit_length() // (2 * BUCKETS))
    return RowPlan(assignment, -(-rows // step) * step, capacity)
