"""Grouping plans: which windows share a row of attention (GreenMIM, arXiv 2205.13515, section 3).

With n groups of capacity g and C channels, attention costs n · (4·g·C² + 2·g²·C) multiply-adds:
four projections of every slot, and the two products of every pair of slots.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from triptych.mim.packing import best_fill, fewest_groups, first_fit_decreasing

EXACT_UP_TO = 14  # windows; the search doubles with each one more
SWEEP = 4096  # capacities tried at most; token counts of images stay far below

Packer = Callable[[np.ndarray, int], np.ndarray]


def attention_cost(groups: int, capacity: int, channels: int, projections: int = 4) -> int:
    """Multiply-adds of attention in ``groups`` rows of ``capacity`` slots.

    ``projections`` is how many C x C products run on the slots of the rows; 0 where they run on
    the tokens instead and the rows hold only queries, keys and values.
    """
    return groups * (projections * capacity * channels**2 + 2 * capacity**2 * channels)


@dataclass(frozen=True)
class GroupPlan:
    """``assignment[k]`` is the group of window k; no group holds more than ``capacity`` tokens."""

    assignment: np.ndarray
    capacity: int

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return int(self.assignment.max(initial=-1)) + 1

    @cached_property
    def groups(self) -> list[list[int]]:
        """The window numbers of each group."""
        groups: list[list[int]] = [[] for _ in range(self.num_groups)]
        for window, group in enumerate(self.assignment.tolist()):
            if group >= 0:
                groups[group].append(window)
        return groups

    def cost(self, channels: int, projections: int = 4) -> int:
        """See :func:`attention_cost`."""
        return attention_cost(self.num_groups, self.capacity, channels, projections)


def plan_groups(
    counts: Sequence[int] | np.ndarray,
    channels: int,
    *,
    projections: int = 4,
    thorough: bool = True,
) -> GroupPlan:
    """Group windows so that attention costs as little as possible.

    First-fit decreasing over a sweep of capacities. ``thorough`` also tries the published greedy
    wherever it could be cheaper, so that the cost is never above its, and with at most 14 windows
    the exact search, so that it is the minimum. Windows without tokens join the first group.

    Args:
        counts: tokens of each window.
        channels: C.
        projections: see :func:`attention_cost`.
        thorough: False for many windows on a critical path; with a thousand windows first-fit
            decreasing leaves next to nothing to gain.

    Raises:
        ValueError: a count is negative, all are 0, or ``channels`` is below 1.
    """
    counts = _checked(counts)
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    filled = np.flatnonzero(counts)
    sizes = counts[filled]
    plan = _sweep(sizes, first_fit_decreasing, None, channels, projections)
    if thorough:
        plan = _sweep(sizes, best_fill, plan, channels, projections)
        if len(sizes) <= EXACT_UP_TO:
            plan = _search(sizes, plan, channels, projections)
    assignment = np.zeros(len(counts), dtype=np.int64)
    assignment[filled] = plan.assignment
    return GroupPlan(assignment, plan.capacity)


def published_grouping(counts: Sequence[int] | np.ndarray, group_size: int) -> GroupPlan:
    """The grouping of GreenMIM's released code: groups filled one by one to a given capacity.

    Windows without tokens get the group -1.

    Raises:
        ValueError: a count is negative or above ``group_size``, or all are 0.
    """
    counts = _checked(counts)
    if counts.max() > group_size:
        raise ValueError(
            f"a window holds {counts.max()} tokens, but a group only {group_size}; the least "
            f"legal group_size is {counts.max()}"
        )
    filled = np.flatnonzero(counts)
    assignment = np.full(len(counts), -1, dtype=np.int64)
    assignment[filled] = best_fill(counts[filled], group_size)
    return GroupPlan(assignment, group_size)


def _sweep(
    sizes: np.ndarray,
    pack: Packer,
    incumbent: GroupPlan | None,
    channels: int,
    projections: int,
) -> GroupPlan:
    """The cheapest of ``incumbent`` and of what ``pack`` makes at any capacity."""
    total, largest = int(sizes.sum()), int(sizes.max())
    step = max(1, (total - largest) // SWEEP)
    best = incumbent
    for capacity in range(largest, total + 1, step):
        # Full groups are the best there is at a capacity, and they only get dearer with it.
        floor = attention_cost(1, capacity, channels, projections) * total / capacity
        if best is not None and floor >= best.cost(channels, projections):
            break
        least = attention_cost(-(-total // capacity), capacity, channels, projections)
        if best is None or least < best.cost(channels, projections):
            plan = _tightened(pack(sizes, capacity), sizes)
            if best is None or plan.cost(channels, projections) < best.cost(channels, projections):
                best = plan
    assert best is not None  # the first capacity always gives a plan
    return best


def _search(sizes: np.ndarray, plan: GroupPlan, channels: int, projections: int) -> GroupPlan:
    """The cheapest plan of all: for each number of groups the least capacity that suffices."""
    total, largest = int(sizes.sum()), int(sizes.max())
    for groups in range(1, len(sizes) + 1):
        low = max(largest, -(-total // groups))
        high = low + bisect_left(  # the first capacity that is too dear
            range(low, total + 1),
            plan.cost(channels, projections),
            key=lambda g, n=groups: attention_cost(n, g, channels, projections),  # type: ignore[misc]
        )
        while low < high:
            middle = (low + high) // 2
            packed = _tightened(fewest_groups(sizes, middle), sizes)
            if packed.num_groups > groups:
                low = middle + 1
                continue
            high = packed.capacity
            plan = min(plan, packed, key=lambda p: p.cost(channels, projections))
    return plan


def _tightened(assignment: np.ndarray, sizes: np.ndarray) -> GroupPlan:
    """No group needs a higher capacity than the fullest one has tokens."""
    fill = np.bincount(assignment, weights=sizes)
    return GroupPlan(assignment, int(fill.max()))


def _checked(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    array = np.asarray(counts, dtype=np.int64)
    if array.ndim != 1 or not array.size or array.min() < 0 or not array.any():
        raise ValueError(
            f"counts must be a list of token counts, none negative and one at least positive, "
            f"got {array.tolist()}"
        )
    return array
