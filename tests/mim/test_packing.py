from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.mim.packing import best_fill, fewest_groups, first_fit_decreasing

COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def naive_first_fit_decreasing(counts: list[int], capacity: int) -> list[int]:
    rooms: list[int] = []
    groups = [0] * len(counts)
    for window in sorted(range(len(counts)), key=lambda i: -counts[i]):
        fitting = [group for group, room in enumerate(rooms) if room >= counts[window]]
        group = fitting[0] if fitting else len(rooms)
        if not fitting:
            rooms.append(capacity)
        rooms[group] -= counts[window]
        groups[window] = group
    return groups


@given(counts=COUNTS, extra=st.integers(0, 40))
def test_first_fit_decreasing_is_the_textbook_one(counts, extra):
    capacity = max(counts) + extra
    groups = first_fit_decreasing(np.array(counts), capacity)
    naive = naive_first_fit_decreasing(counts, capacity)
    # Windows of one size are interchangeable, so compare what each group holds.
    for group in range(max(naive) + 1):
        held = sorted(c for c, g in zip(counts, groups, strict=True) if g == group)
        assert held == sorted(c for c, g in zip(counts, naive, strict=True) if g == group)
    assert groups.max() == max(naive)


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=9), extra=st.integers(0, 40))
def test_best_fill_is_the_fullest_subset_of_what_is_left(counts, extra):
    capacity = max(counts) + extra
    groups = best_fill(np.array(counts), capacity)
    left = list(counts)
    for group in range(groups.max() + 1):
        held = [c for c, g in zip(counts, groups, strict=True) if g == group]
        sums = {sum(c for c, take in zip(left, t, strict=True) if take) for t in _subsets(left)}
        assert sum(held) == max(s for s in sums if s <= capacity)
        for count in held:
            left.remove(count)
    assert not left


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=6), extra=st.integers(0, 12))
def test_fewest_groups_is_the_minimum_of_all_assignments(counts, extra):
    capacity = max(counts) + extra
    groups = fewest_groups(np.array(counts), capacity)
    fill = np.bincount(groups, weights=counts)
    assert fill.max() <= capacity
    assert fill.min() > 0
    assert len(fill) == min(
        max(assignment) + 1
        for assignment in product(range(len(counts)), repeat=len(counts))
        if np.bincount(assignment, weights=counts).max() <= capacity
    )


def _subsets(items: list[int]):
    return product((False, True), repeat=len(items))
