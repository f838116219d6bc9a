"""Means over images with 95 % t-intervals, and paired differences.

Images are the unit of replication here; over seeds a study makes its own intervals. A value that
an image does not have is NaN and is left out, of a pair on both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
NO_DIFFERENCE = "no detectable difference"


@dataclass(frozen=True)
class Mean:
    """A mean with its interval; the ends are NaN below two values.

    Attributes:
        count: values that went in.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def verdict(self) -> str:
        """What a difference says: higher, lower, or no detectable difference."""
        if math.isnan(self.low):
            return f"{self.count} image{'' if self.count == 1 else 's'}: no interval"
        if self.low <= 0 <= self.high:
            return NO_DIFFERENCE
        return "higher" if self.low > 0 else "lower"


def mean_over_images(values: np.ndarray) -> Mean:
    """Mean of the finite ones of ``values`` (B,) and its two-sided 95 % Student-t interval."""
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    if kept.size == 0:
        return Mean(math.nan, math.nan, math.nan, 0)
    mean = float(kept.mean())
    if kept.size == 1:
        return Mean(mean, math.nan, math.nan, 1)
    error = float(kept.std(ddof=1)) / math.sqrt(kept.size)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, kept.size - 1)) * error
    return Mean(mean, mean - half, mean + half, int(kept.size))


def paired_over_images(first: np.ndarray, second: np.ndarray) -> Mean:
    """Mean of ``first`` − ``second`` over the images that both have.

    Raises:
        ValueError: they are not of the same images.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"{first.size} and {second.size} values are not of the same images; compare runs "
            "that saw the same probe set"
        )
    return mean_over_images(first - second)
