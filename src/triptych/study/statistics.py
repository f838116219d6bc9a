"""Means over seeds, paired differences between cells, and correction for many comparisons.

Every interval is a two-sided 95 % Student-t interval of a mean. Seeds are the unit of replication:
a difference is taken seed by seed, so that what two cells share (initial weights, data order,
masks) cancels. One seed gives no interval, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
# Below this many ulps of the data's own size, a spread is rounding and not variance.
ROUNDING_ULPS = 8.0

NO_DIFFERENCE = "no detectable difference"
HIGHER = "higher"
LOWER = "lower"
ONE_SEED = "one seed: no interval"
NO_SHARED_SEED = "no shared seed: no comparison"
MEASURED_ONCE = "measured once: no interval"
NOT_FINITE = "a value is not finite: no comparison"


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; the ends are NaN where there is none (one value)."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class PairedDifference:
    """Mean of ``first − second`` over shared seeds, its interval, p-value and verdict.

    ``left_out`` names the seeds that only one of the two has; they are not used.
    """

    difference: float
    ci_low: float
    ci_high: float
    n_seeds: int
    p_value: float
    verdict: str
    left_out: tuple[int, ...] = ()


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % t-interval of one value a seed, in the unit of ``values``.

    Raises ValueError when there is no value.
    """
    if len(values) == 0:
        raise ValueError("a mean needs at least one value, got none")
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size == 1 or not np.isfinite(array).all():
        return Interval(mean, math.nan, math.nan, int(array.size))
    error = _standard_error(array, scale=float(np.abs(array).max()))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, array.size - 1)) * error
    return Interval(mean, mean - half, mean + half, int(array.size))


def _standard_error(values: np.ndarray, scale: float) -> float:
    """Standard error of the mean; exactly 0 where the spread is rounding at that scale."""
    spread = float(values.max() - values.min())
    if spread <= ROUNDING_ULPS * float(np.finfo(np.float64).eps) * scale:
        return 0.0
    return float(values.std(ddof=1)) / math.sqrt(values.size)


def paired_difference(
    a_by_seed: Mapping[int, float], b_by_seed: Mapping[int, float]
) -> PairedDifference:
    """Compare a with b over the seeds that both have: mean of a − b, t-interval, verdict.

    Seeds that only one of them has are left out and named in the result. Equal differences at
    every seed (a parameter count, say) give an interval of no width. p is that of the two-sided
    paired t-test, so the interval excludes 0 exactly where p < 0.05.
    """
    shared = sorted(set(a_by_seed) & set(b_by_seed))
    left_out = tuple(sorted(set(a_by_seed) ^ set(b_by_seed)))
    nan = math.nan
    if not shared:
        return PairedDifference(nan, nan, nan, 0, nan, NO_SHARED_SEED, left_out)
    a = np.array([a_by_seed[seed] for seed in shared], dtype=np.float64)
    b = np.array([b_by_seed[seed] for seed in shared], dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return PairedDifference(nan, nan, nan, len(shared), nan, NOT_FINITE, left_out)
    gaps = a - b
    mean = float(gaps.mean())
    if len(shared) == 1:
        return PairedDifference(mean, nan, nan, 1, nan, ONE_SEED, left_out)
    error = _standard_error(gaps, scale=float(max(np.abs(a).max(), np.abs(b).max())))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(shared) - 1)) * error
    low, high = mean - half, mean + half
    p_value = _p_value(mean, error, len(shared))
    return PairedDifference(mean, low, high, len(shared), p_value, _verdict(low, high), left_out)


def without_replication(result: PairedDifference) -> PairedDifference:
    """The difference of a quantity that the seeds share: a number, but no interval and no test.

    Copies of one measurement have no variance among them, which is no evidence of anything.
    """
    if not math.isfinite(result.difference):
        return result
    nan = math.nan
    return replace(result, ci_low=nan, ci_high=nan, p_value=nan, verdict=MEASURED_ONCE)


def _p_value(mean: float, error: float, n: int) -> float:
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, n - 1))


def _verdict(low: float, high: float) -> str:
    if low <= 0 <= high:
        return NO_DIFFERENCE
    return HIGHER if low > 0 else LOWER


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment of a family of p-values (Holm 1979); NaN stays NaN.

    The adjusted values keep the order, lie in [0, 1], and control the chance of any false
    finding in the family. NaN entries (no test was made) do not count towards its size.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted
