"""Snow, frost, fog and brightness (Hendrycks & Dietterich, ICLR 2019).

Images are uint8 arrays (H, W, C) with C = 1 or 3 and H = W; results are float64, from 0 to 255.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.color import hsv2rgb, rgb2hsv

from triptych.data.corruptions.blur import clipped_zoom, trail
from triptych.data.corruptions.noise import Corrupted, Pixels, Random
from triptych.data.corruptions.plasma import plasma

_LUMA = np.array([0.299, 0.587, 0.114])
# The tint of ice.
_ICE = np.array([0.86, 0.94, 1.0])


def snow(image: Pixels, values: tuple[float, ...], random: Random) -> Corrupted:
    """Whitened image with flakes that fall, and the same flakes turned by half a turn.

    ``values``: mean and deviation of the flakes, how much they are enlarged, the threshold below
    which there is none, radius and sigma of their trail, and the share of the plain image.
    """
    mean, deviation, zoom, least, radius, sigma, share = values
    flakes = random.normal(size=image.shape[:2], loc=mean, scale=deviation)
    flakes = clipped_zoom(flakes[..., None], zoom)
    flakes[flakes < least] = 0
    grey = (np.clip(flakes, 0, 1) * 255).astype(np.uint8)
    fallen = trail(grey, radius, sigma, angle=random.uniform(-135, -45)) / 255
    plain = image / 255.0
    luma = plain @ _LUMA if image.shape[2] == 3 else plain[..., 0]
    white = share * plain + (1 - share) * np.maximum(plain, 1.5 * luma[..., None] + 0.5)
    return np.clip(white + fallen + np.rot90(fallen, 2), 0, 1) * 255


def frost(image: Pixels, values: tuple[float, float], random: Random) -> Corrupted:
    """The image under ice; ``values`` are the shares of image and ice.

    The published images show crops of five photographs of frosted panes, which are not part of
    this project: the ice here is grown from clouds. So errors under frost may be compared with
    each other, but not with those on ImageNet-C.
    """
    shares = values
    return np.clip(shares[0] * image + shares[1] * _ice(image.shape, random), 0, 255)


def _ice(shape: tuple[int, ...], random: Random) -> NDArray[np.float64]:
    """Crystals: bright creases of one cloud over another, from 0 to 255."""
    crease = (1 - np.abs(2 * plasma(shape[0], 2.0, random) - 1)) ** 3
    ground = plasma(shape[0], 1.8, random)
    ice = np.clip(0.15 + 0.35 * ground + 0.6 * crease, 0, 1)[..., None] * 255
    return ice * (_ICE if shape[2] == 3 else 1.0)


def fog(image: Pixels, values: tuple[float, float], random: Random) -> Corrupted:
    """Clouds before the image; ``values`` are their thickness and how smooth they are."""
    thickness, decay = values
    plain = image / 255.0
    brightest = plain.max()
    clouded = plain + thickness * plasma(image.shape[0], decay, random)[..., None]
    return np.clip(clouded * brightest / (brightest + thickness), 0, 1) * 255


def brightness(image: Pixels, lift: float, random: Random) -> Corrupted:
    """``lift`` is added to the value in hue, saturation, value; of grey images to the pixels."""
    plain = image / 255.0
    if image.shape[2] == 1:
        return np.clip(plain + lift, 0, 1) * 255
    hsv = rgb2hsv(plain)
    hsv[..., 2] = np.clip(hsv[..., 2] + lift, 0, 1)
    return np.clip(hsv2rgb(hsv), 0, 1) * 255
