import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from triptych.study.statistics import (
    HIGHER,
    LOWER,
    MEASURED_ONCE,
    NO_DIFFERENCE,
    NO_SHARED_SEED,
    NOT_FINITE,
    ONE_SEED,
    holm,
    mean_interval,
    paired_difference,
    without_replication,
)

VALUES = st.floats(-1e6, 1e6, allow_nan=False)


def test_interval_of_three_values_by_hand():
    # mean 2, s = 1, t(0.975, 2) = 4.30265 (any t table), half width = 4.30265 / √3.
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.30265 / math.sqrt(3), abs=1e-5)
    assert interval.n == 3


def test_interval_agrees_with_scipy():
    values = [0.951, 0.947, 0.962, 0.949, 0.957]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    interval = mean_interval(values)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)


def test_paired_difference_agrees_with_scipy_ttest_rel():
    a, b = [0.95, 0.96, 0.97, 0.955], [0.94, 0.955, 0.95, 0.951]
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.95)
    result = paired_difference(dict(enumerate(a)), dict(enumerate(b)))
    assert result.p_value == pytest.approx(test.pvalue, rel=1e-9)
    assert (result.ci_low, result.ci_high) == pytest.approx((low, high), rel=1e-9)


def test_holm_agrees_with_the_definition():
    # Sorted p: 0.01·4, 0.02·3, 0.03·2, 0.04·1 → step-down maxima 0.04, 0.06, 0.06, 0.06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_holm_keeps_nan_and_does_not_count_it():
    adjusted = holm([math.nan, 0.01, 0.4])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.02, 0.4])
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_a_probability_between_p_and_bonferroni(p_values):
    adjusted = holm(p_values)
    p = np.array(p_values)
    assert (adjusted >= p).all()
    assert (adjusted <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    assert adjusted[order[0]] == min(p.min() * len(p_values), 1)


@given(st.lists(VALUES, min_size=2, max_size=20))
def test_interval_contains_the_mean(values):
    interval = mean_interval(values)
    assert interval.low <= interval.mean <= interval.high


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=10))
def test_swapping_the_two_negates(pairs):
    a = {seed: pair[0] for seed, pair in enumerate(pairs)}
    b = {seed: pair[1] for seed, pair in enumerate(pairs)}
    ab, ba = paired_difference(a, b), paired_difference(b, a)
    assert ab.difference == -ba.difference
    ours = [ab.ci_low, ab.ci_high, ab.p_value]
    assert np.array_equal(ours, [-ba.ci_high, -ba.ci_low, ba.p_value], equal_nan=True)
    swapped = {HIGHER: LOWER, LOWER: HIGHER}
    assert ab.verdict == swapped.get(ba.verdict, ba.verdict)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=10), VALUES)
def test_what_both_share_at_a_seed_cancels(pairs, shift):
    a = {seed: pair[0] for seed, pair in enumerate(pairs)}
    b = {seed: pair[1] for seed, pair in enumerate(pairs)}
    plain = paired_difference(a, b)
    shifted = paired_difference(
        {seed: value + shift for seed, value in a.items()},
        {seed: value + shift for seed, value in b.items()},
    )
    assert shifted.difference == pytest.approx(plain.difference, abs=1e-8)
    assert shifted.ci_low == pytest.approx(plain.ci_low, abs=1e-6)


def test_interval_covers_the_true_mean_in_95_percent_of_samples():
    rng = np.random.default_rng(0)
    hits = 0
    for sample in rng.normal(3.0, 2.0, (4000, 3)):
        interval = mean_interval(list(sample))
        hits += interval.low <= 3.0 <= interval.high
    assert hits / 4000 == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([0.01, 0.011, 0.012], HIGHER),
        ([-0.01, -0.011, -0.012], LOWER),
        ([0.01, -0.01, 0.02], NO_DIFFERENCE),
    ],
)
def test_verdicts(gaps, verdict):
    b = {0: 0.9, 1: 0.91, 2: 0.92}
    assert paired_difference({seed: b[seed] + gaps[seed] for seed in b}, b).verdict == verdict


def test_one_seed_has_no_interval():
    result = paired_difference({0: 0.9}, {0: 0.8})
    assert result.verdict == ONE_SEED == "one seed: no interval"
    assert result.difference == pytest.approx(0.1)
    assert math.isnan(result.ci_low)
    assert math.isnan(result.p_value)
    assert math.isnan(mean_interval([0.9]).low)


def test_only_shared_seeds_are_used_and_the_others_named():
    result = paired_difference({0: 1.0, 1: 2.0, 7: 99.0}, {1: 1.5, 0: 0.4, 3: -5.0})
    assert result.n_seeds == 2
    assert result.difference == pytest.approx(0.55)
    assert result.left_out == (3, 7)


def test_no_shared_seed():
    result = paired_difference({0: 1.0}, {1: 1.0})
    assert (result.verdict, result.n_seeds, result.left_out) == (NO_SHARED_SEED, 0, (0, 1))
    assert math.isnan(result.difference)


def test_constant_differences():
    b = {0: 95_210.0, 1: 95_210.0}
    more = paired_difference({0: 96_042.0, 1: 96_042.0}, b)
    assert (more.ci_low, more.ci_high, more.p_value, more.verdict) == (832, 832, 0.0, HIGHER)
    same = paired_difference(b, b)
    assert (same.ci_low, same.ci_high, same.p_value, same.verdict) == (0, 0, 1.0, NO_DIFFERENCE)


def test_what_the_seeds_share_is_a_number_without_a_test():
    result = without_replication(paired_difference({0: 812.0, 1: 812.0}, {0: 478.0, 1: 478.0}))
    assert (result.difference, result.n_seeds, result.verdict) == (334.0, 2, MEASURED_ONCE)
    assert np.isnan([result.ci_low, result.ci_high, result.p_value]).all()
    nothing = paired_difference({}, {0: 1.0})
    assert without_replication(nothing) is nothing


def test_rounding_is_no_variance():
    b = {0: 0.1, 1: 0.2, 2: 0.7}
    result = paired_difference({seed: value + 0.1 for seed, value in b.items()}, b)
    assert result.ci_low == result.ci_high == result.difference


def test_values_that_are_not_finite_give_no_comparison():
    assert paired_difference({0: math.nan, 1: 1.0}, {0: 1.0, 1: 1.0}).verdict == NOT_FINITE
    interval = mean_interval([1.0, math.inf])
    assert math.isnan(interval.low)


def test_no_value_is_refused():
    with pytest.raises(ValueError, match=r"^a mean needs at least one value, got none$"):
        mean_interval([])
