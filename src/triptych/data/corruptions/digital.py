"""Contrast, elastic transform, pixelation and JPEG (Hendrycks & Dietterich, ICLR 2019).

Images are uint8 arrays (H, W, C) with C = 1 or 3 and H = W; results are float64, from 0 to 255.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from triptych.data.corruptions.noise import Corrupted, Pixels, Random


def contrast(image: Pixels, factor: float, random: Random) -> Corrupted:
    """Differences from the mean colour times ``factor``."""
    plain = image / 255.0
    mean = plain.mean(axis=(0, 1), keepdims=True)
    return np.clip((plain - mean) * factor + mean, 0, 1) * 255


def elastic_transform(
    image: Pixels, values: tuple[float, float, float], random: Random
) -> Corrupted:
    """A random affine map, then every pixel moved a little; all bilinear.

    ``values``: strength and smoothness (sigma) of the moves, and how far the three corners that
    define the affine map are moved at most, in pixels.
    """
    strength, sigma, reach = values
    plain = _affine((image / 255.0).astype(np.float32), reach, random)
    side = image.shape[0]
    moves = [
        ndimage.gaussian_filter(random.uniform(-1, 1, (side, side)), sigma, truncate=3) * strength
        for _ in range(2)
    ]
    rows, columns = np.indices((side, side))
    at = np.stack([rows + moves[1], columns + moves[0]])
    return np.clip(_sampled(plain, at, "reflect"), 0, 1) * 255


def _affine(image: NDArray[np.float32], reach: float, random: Random) -> NDArray[np.float32]:
    """``image`` under the affine map that moves three corners of its middle by up to ``reach``."""
    side = image.shape[0]
    middle, third = side // 2, side // 3
    corners = np.array([(1, 1), (1, -1), (-1, -1)]) * third + middle  # (x, y) of each
    moved = corners + random.uniform(-reach, reach, corners.shape)
    # Where a pixel of the result comes from: the map from the moved corners to the corners.
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    rows, columns = np.indices((side, side))
    x_y = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back
    return _sampled(image, np.stack([x_y[..., 1], x_y[..., 0]]), "mirror")


def _sampled(image: NDArray, at: NDArray, border: str) -> NDArray:
    """Values of ``image`` (H, W, C) at the rows and columns ``at`` (2, H, W)."""
    return np.stack(
        [
            ndimage.map_coordinates(channel, at, order=1, mode=border)
            for channel in np.rollaxis(image, 2)
        ],
        axis=2,
    )


def pixelate(image: Pixels, factor: float, random: Random) -> Corrupted:
    """Reduced to ``factor`` of its side and enlarged again, by boxes."""
    side = image.shape[0]
    small = max(1, int(side * factor))
    reduced = _to_pillow(image).resize((small, small), Image.Resampling.BOX)
    return _from_pillow(reduced.resize((side, side), Image.Resampling.BOX), image)


def jpeg_compression(image: Pixels, quality: int, random: Random) -> Corrupted:
    """Through a JPEG file of ``quality``; grey images stay grey in it."""
    file = BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=quality)
    return _from_pillow(Image.open(file), image)


def _to_pillow(image: Pixels) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _from_pillow(image: Image.Image, like: Pixels) -> Corrupted:
    return np.asarray(image).reshape(like.shape).astype(np.float64)
