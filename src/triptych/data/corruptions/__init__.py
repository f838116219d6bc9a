"""The fifteen corruptions of Hendrycks & Dietterich (ICLR 2019), for images of any size.

Own functions after the published definitions: the packages that offer them have the constants for
224 pixels alone, take colour images only, draw from NumPy's global generator and bring OpenCV and
numba. They are checked against the released code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from triptych.choices import Corruption
from triptych.data.corruptions import blur, digital, noise, weather
from triptych.data.corruptions.noise import Pixels, Random
from triptych.data.corruptions.severities import constants

__all__ = ["CORRUPTIONS", "corrupt"]

CORRUPTIONS: dict[Corruption, Callable[[Pixels, Any, Random], noise.Corrupted]] = {
    Corruption.gaussian_noise: noise.gaussian_noise,
    Corruption.shot_noise: noise.shot_noise,
    Corruption.impulse_noise: noise.impulse_noise,
    Corruption.defocus_blur: blur.defocus_blur,
    Corruption.glass_blur: blur.glass_blur,
    Corruption.motion_blur: blur.motion_blur,
    Corruption.zoom_blur: blur.zoom_blur,
    Corruption.snow: weather.snow,
    Corruption.frost: weather.frost,
    Corruption.fog: weather.fog,
    Corruption.brightness: weather.brightness,
    Corruption.contrast: digital.contrast,
    Corruption.elastic_transform: digital.elastic_transform,
    Corruption.pixelate: digital.pixelate,
    Corruption.jpeg_compression: digital.jpeg_compression,
}


def corrupt(image: Pixels, corruption: Corruption, severity: int, random: Random) -> Pixels:
    """``image``, uint8 (S, S, C) with C = 1 or 3, corrupted; uint8 of the same shape.

    Constants are those published for the size nearest to S. Values are cut off to whole numbers,
    as the released code does.

    Raises:
        ValueError: another type or shape, or a severity that is not 1 to 5.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            f"an image of {image.dtype} and shape {image.shape} was given; corruptions take uint8 "
            "(side, side, channels) with 1 or 3 channels"
        )
    if image.shape[0] != image.shape[1]:
        raise ValueError(
            f"an image of {image.shape[0]}x{image.shape[1]} pixels was given; corruptions take "
            "square images"
        )
    values = constants(corruption, severity, image.shape[0])
    return CORRUPTIONS[corruption](image, values, random).astype(np.uint8)
