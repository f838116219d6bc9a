"""Corruption errors: plain means, and the mCE of ImageNet-C (Hendrycks & Dietterich, ICLR 2019).

An error is a share in [0, 1]. ``errors[corruption][severity]`` are those that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from triptych.choices import Corruption

SEVERITIES = (1, 2, 3, 4, 5)
IMAGENET_CLASSES, IMAGENET_IMAGES = 1000, 50_000
# AlexNet's mean over severities, for ImageNet-C alone: on other images they mean nothing.
ALEXNET: dict[Corruption, float] = {
    Corruption.gaussian_noise: 0.886428,
    Corruption.shot_noise: 0.894468,
    Corruption.impulse_noise: 0.922640,
    Corruption.defocus_blur: 0.819880,
    Corruption.glass_blur: 0.826268,
    Corruption.motion_blur: 0.785948,
    Corruption.zoom_blur: 0.798360,
    Corruption.snow: 0.866816,
    Corruption.frost: 0.826572,
    Corruption.fog: 0.819324,
    Corruption.brightness: 0.564592,
    Corruption.contrast: 0.853204,
    Corruption.elastic_transform: 0.646056,
    Corruption.pixelate: 0.717840,
    Corruption.jpeg_compression: 0.606500,
}
ALEXNET_CLEAN = 0.4348

Errors = Mapping[Corruption, Mapping[int, float]]


class IncompleteError(ValueError):
    """An mCE was asked of an incomplete set; the message lists what is missing."""


def mean_errors(errors: Errors) -> dict[Corruption, float]:
    """The mean over severities of each corruption."""
    return {corruption: fmean(row.values()) for corruption, row in errors.items()}


def missing_sets(errors: Errors) -> list[str]:
    """Those of the 75 sets that have no error, as ``fog/3``."""
    return [
        f"{corruption}/{severity}"
        for corruption in Corruption
        for severity in SEVERITIES
        if severity not in errors.get(corruption, {})
    ]


def corruption_error(errors: Errors) -> float:
    """mCE: the mean over corruptions of Σ_s error / Σ_s AlexNet's error (equation 1).

    Raises:
        IncompleteError: some of the 75 sets are missing.
    """
    return _over_corruptions(errors, 0.0, 0.0)


def relative_corruption_error(errors: Errors, clean: float) -> float:
    """Relative mCE: both sums less the error on clean images (equation 2).

    Raises:
        IncompleteError: some of the 75 sets are missing.
    """
    return _over_corruptions(errors, clean, ALEXNET_CLEAN)


def _over_corruptions(errors: Errors, clean: float, alexnet_clean: float) -> float:
    missing = missing_sets(errors)
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        raise IncompleteError(
            f"no mCE from {75 - len(missing)} of 75 sets of corrupted images: {shown} missing"
        )
    own = mean_errors(errors)
    return fmean(
        (own[corruption] - clean) / (base - alexnet_clean) for corruption, base in ALEXNET.items()
    )
