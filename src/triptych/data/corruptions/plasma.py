"""Clouds by the diamond-square algorithm, as fog is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from triptych.data.corruptions.noise import Random


def plasma(side: int, decay: float, random: Random) -> NDArray[np.float64]:
    """A periodic height map (``side``, ``side``) cut out of the next power of two, in [0, 1].

    From coarse to fine, points between known ones get their mean and a random height; the range
    of the heights is ``decay`` times smaller on each finer grid (Hendrycks & Dietterich, 2019).
    """
    size = 1 << (side - 1).bit_length()
    heights = np.zeros((size, size))
    step, spread = size, 100.0

    def disturbed(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return sums / 4 + spread * random.uniform(-spread, spread, sums.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = disturbed(pairs + np.roll(pairs, -1, axis=1))
        centres = heights[half::step, half::step]
        above = corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = disturbed(centres + np.roll(centres, 1, axis=0) + above)
        beside = corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = disturbed(centres + np.roll(centres, 1, axis=1) + beside)
        step, spread = half, spread / decay
    heights -= heights.min()
    return (heights / heights.max())[:side, :side]
