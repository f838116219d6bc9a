"""Defocus, glass, motion and zoom blur (Hendrycks & Dietterich, ICLR 2019).

Images are uint8 arrays (H, W, C) with C = 1 or 3 and H = W; results are float64, from 0 to 255.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from triptych.data.corruptions.noise import Corrupted, Pixels, Random


def defocus_blur(image: Pixels, values: tuple[float, float], random: Random) -> Corrupted:
    """Correlation with a disk; ``values`` are its radius and the blur of its edge, in pixels."""
    kernel = _disk(*values)
    channels = [
        ndimage.correlate(channel / 255.0, kernel, mode="mirror")
        for channel in np.rollaxis(image, 2)
    ]
    return np.clip(np.stack(channels, axis=2), 0, 1) * 255


def _disk(radius: float, edge_blur: float) -> NDArray[np.float64]:
    """A disk whose sum is 1, smoothed by a Gaussian of 3 or 5 taps; without its empty margin."""
    reach = 8 if radius <= 8 else math.ceil(radius)
    at = np.arange(-reach, reach + 1)
    disk = (at[None] ** 2 + at[:, None] ** 2 <= radius**2).astype(np.float64)
    half = 1 if radius <= 8 else 2
    taps = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * edge_blur**2))
    disk /= disk.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, taps / taps.sum(), axis=axis, mode="mirror")
    empty = int((disk[reach] > 0).argmax())
    return disk[empty : len(disk) - empty, empty : len(disk) - empty]


def glass_blur(image: Pixels, values: tuple[float, int, int], random: Random) -> Corrupted:
    """Blur, local displacement, blur; ``values`` are sigma, largest displacement and rounds.

    A pixel takes the colour of a random neighbour, from bottom right to top left. The paper
    speaks of swapping; the released code, and so ImageNet-C, copies, and so does this.
    """
    sigma, reach, rounds = values
    side, channels = image.shape[0], image.shape[2]
    blurred = np.uint8(_gaussian(image / 255.0, sigma) * 255)
    source = list(range(side * side))
    rows = range(side - reach, reach, -1)
    for _ in range(rounds):
        # A generator's and a random state's integers; the upper end is excluded in both.
        draw = random.integers if isinstance(random, np.random.Generator) else random.randint
        steps = iter(draw(-reach, reach, size=(len(rows) ** 2, 2)).tolist())
        for row in rows:
            for column, (right, down) in zip(rows, steps, strict=False):
                source[row * side + column] = source[(row + down) * side + column + right]
    moved = blurred.reshape(-1, channels)[source].reshape(image.shape)
    return np.clip(_gaussian(moved / 255.0, sigma), 0, 1) * 255


def _gaussian(image: NDArray, sigma: float) -> NDArray:
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4)


def motion_blur(image: Pixels, values: tuple[float, float], random: Random) -> Corrupted:
    """One-sided Gaussian trail; ``values`` are radius and sigma, the angle is up to 45 degrees."""
    return trail(image, *values, angle=random.uniform(-45, 45))


def trail(image: Pixels, radius: float, sigma: float, *, angle: float) -> Corrupted:
    """ImageMagick's motion blur of uint8 images at ``angle`` degrees, to whole grey levels.

    A pixel is the mean of 2 ⌈radius⌉ + 1 pixels that lie one behind the other in a direction,
    weighted by half a Gaussian; beyond the border its pixels go on.
    """
    width = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = (math.sin(math.radians(angle)), math.cos(math.radians(angle)))
    rows, columns = np.arange(image.shape[0]), np.arange(image.shape[1])
    total = np.zeros(image.shape)
    for step, weight in enumerate(weights):
        moved = np.clip(rows + math.ceil(step * down - 0.5), 0, len(rows) - 1)
        total += (
            weight
            * image[moved][:, np.clip(columns + math.ceil(step * right - 0.5), 0, len(columns) - 1)]
        )
    # ImageMagick keeps 16 bits, of which the file that it writes cuts off the lower ones.
    return np.floor(np.rint(257 * total) / 257)


def zoom_blur(image: Pixels, values: tuple[float, float], random: Random) -> Corrupted:
    """Mean of the image and of its zooms; ``values`` are the end and the step of the factors."""
    start = (image / 255.0).astype(np.float32)
    factors = np.arange(1, *values)
    total = start.copy()
    for factor in factors:
        total += clipped_zoom(start, factor)
    return np.clip(total / (len(factors) + 1), 0, 1).astype(np.float64) * 255


def clipped_zoom(image: NDArray, factor: float) -> NDArray:
    """The centre of ``image`` (S, S, C) enlarged bilinearly to (S, S, C)."""
    side = image.shape[0]
    kept = math.ceil(side / factor)
    top = (side - kept) // 2
    centre = image[top : top + kept, top : top + kept]
    larger = ndimage.zoom(centre, (factor, factor, 1), order=1)
    margin = (larger.shape[0] - side) // 2
    return larger[margin : margin + side, margin : margin + side]
