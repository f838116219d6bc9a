"""Gaussian, shot and impulse noise (Hendrycks & Dietterich, ICLR 2019).

Images are uint8 arrays (H, W, C) with C = 1 or 3; results are float64 on the same scale, from 0
to 255. Every channel of every pixel is disturbed by itself, also where the image is grey.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Random = np.random.Generator | np.random.RandomState
Pixels = NDArray[np.uint8]
Corrupted = NDArray[np.float64]


def gaussian_noise(image: Pixels, scale: float, random: Random) -> Corrupted:
    """Additive noise of standard deviation ``scale`` for pixels in [0, 1]."""
    noise = random.normal(size=image.shape, scale=scale)
    return np.clip(image / 255.0 + noise, 0, 1) * 255


def shot_noise(image: Pixels, photons: float, random: Random) -> Corrupted:
    """Poisson noise: a white pixel catches ``photons`` on average."""
    return np.clip(random.poisson(image / 255.0 * photons) / photons, 0, 1) * 255


def impulse_noise(image: Pixels, share: float, random: Random) -> Corrupted:
    """Salt and pepper: a ``share`` of the values becomes 0 or 255, either as likely."""
    hit = random.random(image.shape) <= share
    salt = random.random(image.shape) <= 0.5
    return np.where(hit, np.where(salt, 255.0, 0.0), image.astype(np.float64))
