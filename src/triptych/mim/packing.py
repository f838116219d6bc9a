"""Packing windows of different sizes into groups of one capacity.

All packers take ``counts`` (tokens of each window, all at least 1 and at most the capacity) and
return the group number of each window, int64 of the same length.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np


def first_fit_decreasing(counts: np.ndarray, capacity: int) -> np.ndarray:
    """First-fit decreasing: largest windows first, each into the first group that has room.

    The same as filling one group after the other with the largest windows that fit, which can be
    done for all groups of equal content at once; the time grows with the number of different
    counts, not of windows.
    """
    windows_of = np.bincount(counts)
    sizes = np.flatnonzero(windows_of).tolist()
    left = windows_of[sizes].tolist()
    runs: list[tuple[int, int, int, int]] = []  # minus size, first group, groups, windows in each
    groups = 0
    while sizes:
        content, repeats = _fill_one(sizes, left, capacity)
        for i, n in content:
            left[i] -= n * repeats
            runs.append((-sizes[i], groups, repeats, n))
        groups += repeats
        for i, _ in content:  # from the largest down, so what is left keeps its place
            if not left[i]:
                del sizes[i], left[i]
    runs.sort()
    _, first, repeats_of, each = np.array(runs).T
    lengths = repeats_of * each
    run = np.repeat(np.arange(len(runs)), lengths)
    place = np.arange(len(counts)) - (np.cumsum(lengths) - lengths)[run]
    assignment = np.empty(len(counts), dtype=np.int64)
    assignment[np.argsort(-counts, kind="stable")] = first[run] + place // each[run]
    return assignment


def _fill_one(
    sizes: list[int], left: list[int], capacity: int
) -> tuple[list[tuple[int, int]], int]:
    """What one group takes, (place in ``sizes``, windows), and how many groups can be alike.

    ``sizes`` ascend.
    """
    content = []
    room, repeats, i = capacity, len(left) + sum(left), len(sizes)
    while (i := bisect_right(sizes, room, 0, i) - 1) >= 0:
        fitting = min(left[i], room // sizes[i])
        content.append((i, fitting))
        repeats = min(repeats, left[i] // fitting)
        room -= fitting * sizes[i]
    return content, repeats


def best_fill(counts: np.ndarray, capacity: int) -> np.ndarray:
    """The published greedy: fill each group as full as any set of remaining windows can.

    One subset-sum problem a group (GreenMIM, arXiv 2205.13515, calls it a knapsack), solved by
    dynamic programming over the reachable sums. The sums are the bits of one integer.
    """
    assignment = np.full(len(counts), -1, dtype=np.int64)
    remaining = list(range(len(counts)))
    within = (1 << (capacity + 1)) - 1
    group = 0
    while remaining:
        reachable = [1]
        for window in remaining:
            sums = reachable[-1]
            reachable.append((sums | (sums << int(counts[window]))) & within)
        fill = reachable[-1].bit_length() - 1
        for position in range(len(remaining) - 1, -1, -1):
            if not reachable[position] >> fill & 1:
                window = remaining.pop(position)
                assignment[window] = group
                fill -= int(counts[window])
        group += 1
    return assignment


def fewest_groups(counts: np.ndarray, capacity: int) -> np.ndarray:
    """A packing into the least possible number of groups; time and memory grow as 2^windows.

    Dynamic programming over the sets of windows: the best way to pack a set has the fewest
    groups and, among those, the least full last group.
    """
    windows = len(counts)
    sets = np.arange(1 << windows)
    size = np.zeros(1 << windows, dtype=np.int64)
    for window in range(windows):
        size += sets >> window & 1
    scale = capacity + 1
    best = np.full(1 << windows, np.iinfo(np.int64).max, dtype=np.int64)
    last = np.zeros(1 << windows, dtype=np.int64)
    best[0] = capacity  # zero groups, the last of them full
    for level in range(1, windows + 1):
        members = sets[size == level]
        for window in range(windows):
            having = members[members >> window & 1 == 1]
            before = best[having ^ (1 << window)]
            fits = before % scale + counts[window] <= capacity
            after = np.where(
                fits, before + counts[window], (before // scale + 1) * scale + counts[window]
            )
            better = after < best[having]
            best[having[better]] = after[better]
            last[having[better]] = window
    return _read_back(best // scale, last, windows)


def _read_back(groups: np.ndarray, last: np.ndarray, windows: int) -> np.ndarray:
    assignment = np.empty(windows, dtype=np.int64)
    rest = (1 << windows) - 1
    while rest:
        window = int(last[rest])
        assignment[window] = groups[rest] - 1
        rest ^= 1 << window
    return assignment
