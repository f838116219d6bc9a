"""Packing windows of different sizes into groups of one capacity.

All packers take ``counts`` (tokens of each window, all at least 1 and at most the capacity) and
return the group number of each window, int64 of the same length.
"""

from __future__ import annotations

import numpy as np


def first_fit_decreasing(counts: np.ndarray, capacity: int) -> np.ndarray:
    """First-fit decreasing: largest windows first, each into the first group that has room.

    The same as filling one group after the other with the largest windows that fit, which can be
    done for all groups of equal content at once; the time grows with the number of different
    counts, not of windows.
    """
    sizes, left = np.unique(counts, return_counts=True)
    sizes, left = sizes[::-1].tolist(), left[::-1].tolist()
    taken: list[list[int]] = [[] for _ in sizes]  # group number of each window of a size
    groups = 0
    while any(left):
        content = _fill_one(sizes, left, capacity)
        repeats = min(left[i] // n for i, n in content)
        for i, n in content:
            left[i] -= n * repeats
            taken[i].extend(np.repeat(np.arange(groups, groups + repeats), n).tolist())
        groups += repeats
    order = np.argsort(-counts, kind="stable")
    assignment = np.empty(len(counts), dtype=np.int64)
    assignment[order] = np.concatenate([np.asarray(t, dtype=np.int64) for t in taken])
    return assignment


def _fill_one(sizes: list[int], left: list[int], capacity: int) -> list[tuple[int, int]]:
    content = []
    room = capacity
    for i, size in enumerate(sizes):
        n = min(left[i], room // size)
        if n:
            content.append((i, n))
            room -= n * size
    return content


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
