from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.mim.plans import EXACT_UP_TO, attention_cost, plan_groups, published_grouping


def instances(reference):
    for i, windows in enumerate(reference.arrays["n_windows"]):
        yield i, reference.arrays["counts"][i, :windows]


def check_whole(plan, counts):
    seen = sorted(window for group in plan.groups for window in group)
    assert seen == list(range(len(counts)))
    fill = [sum(int(counts[window]) for window in group) for group in plan.groups]
    assert max(fill) <= plan.capacity
    assert min(fill) > 0


def test_published_grouping_repeats_the_released_code(golden):
    reference = golden("grouping_public")
    for i, counts in instances(reference):
        plan = published_grouping(counts, int(reference.arrays["group_size"][i]))
        official = reference.arrays["official_assignment"][i, : len(counts)]
        assert np.array_equal(plan.assignment, official)
        assert plan.num_groups == reference.arrays["official_n_groups"][i]
        padding = plan.num_groups * plan.capacity - counts.sum()
        assert padding == reference.arrays["official_padding"][i]


def test_costs_of_the_reference(golden):
    reference = golden("grouping_public")
    channels = reference.arrays["channels"].tolist()
    for i, counts in instances(reference):
        for column, width in enumerate(channels):
            plan = plan_groups(counts, width)
            check_whole(plan, counts)
            cost = plan.cost(width)
            assert cost <= reference.arrays["official_cost"][i, column]
            if reference.arrays["small"][i]:
                assert len(counts) <= EXACT_UP_TO
                assert cost == reference.arrays["opt_cost"][i, column]
                assert cost <= reference.arrays["sweep_greedy_cost"][i, column]
            else:
                least = reference.arrays["exact_min_groups"][i]
                greedy = int(reference.arrays["group_size"][i])
                assert cost <= attention_cost(int(least) + 1, greedy, width)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 49), min_size=1, max_size=40).filter(any),
    channels=st.sampled_from([1, 32, 96, 512]),
    projections=st.sampled_from([0, 4]),
)
def test_never_dearer_than_the_published_greedy_at_any_capacity(counts, channels, projections):
    plan = plan_groups(counts, channels, projections=projections)
    filled = [count for count in counts if count]
    assert sorted(w for group in plan.groups for w in group) == list(range(len(counts)))
    for capacity in range(max(filled), min(sum(filled), 3 * max(filled)) + 1):
        greedy = published_grouping(filled, capacity)
        assert plan.cost(channels, projections) <= greedy.cost(channels, projections)


def cheapest(counts: list[int], channels: int) -> int:
    """Over all partitions of the windows, one at a time."""
    best = attention_cost(1, sum(counts), channels)

    def extend(i: int, fill: list[int]) -> None:
        nonlocal best
        if i == len(counts):
            best = min(best, attention_cost(len(fill), max(fill), channels))
            return
        for group in range(len(fill)):
            extend(i + 1, [*fill[:group], fill[group] + counts[i], *fill[group + 1 :]])
        extend(i + 1, [*fill, counts[i]])

    extend(0, [])
    return best


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 49), min_size=1, max_size=7),
    channels=st.sampled_from([1, 16, 96]),
)
def test_the_minimum_over_all_partitions(counts, channels):
    assert plan_groups(counts, channels).cost(channels) == cheapest(counts, channels)


def test_large_counts_and_many_windows_take_moments():
    rng = np.random.default_rng(0)
    counts = rng.integers(10**5, 10**6, 14)
    check_whole(plan_groups(counts, 96), counts)
    counts = rng.integers(1, 50, 8192)
    plan = plan_groups(counts, 96, projections=0, thorough=False)
    check_whole(plan, counts)
    assert counts.sum() / (plan.num_groups * plan.capacity) > 0.99


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: plan_groups([3, -1], 32),
            "counts must be a list of token counts, none negative and one at least positive, got "
            "[3, -1]",
        ),
        (
            lambda: plan_groups([0, 0], 32),
            "counts must be a list of token counts, none negative and one at least positive, got "
            "[0, 0]",
        ),
        (lambda: plan_groups([3], 0), "channels must be at least 1, got 0"),
        (
            lambda: published_grouping([3, 9], 8),
            "a window holds 9 tokens, but a group only 8; the least legal group_size is 9",
        ),
    ],
)
def test_errors(call, sentence):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value) == sentence
