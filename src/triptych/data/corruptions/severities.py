"""How strong each corruption is at severities 1 to 5: the published constants.

Hendrycks & Dietterich (ICLR 2019) chose them for photographs of 224 pixels (ImageNet-C). Blurs,
displacements and snow are measured in pixels, so the same constants would wipe out a small image;
their code has other ones for 64 pixels (Tiny ImageNet-C) and for 32 (CIFAR-10-C). An image gets
those of the size that is nearest to its own in ratio; nothing is scaled in between.

What the numbers of a corruption mean is told at its function.
"""

from __future__ import annotations

from typing import Any

from triptych.choices import Corruption

C = Corruption
SIZES = (32, 64, 224)

_FOR_224: dict[Corruption, tuple[Any, ...]] = {
    C.gaussian_noise: (0.08, 0.12, 0.18, 0.26, 0.38),
    C.shot_noise: (60, 25, 12, 5, 3),
    C.impulse_noise: (0.03, 0.06, 0.09, 0.17, 0.27),
    C.defocus_blur: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    C.glass_blur: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    C.motion_blur: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    C.zoom_blur: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    C.snow: (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    C.frost: ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    C.fog: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    C.brightness: (0.1, 0.2, 0.3, 0.4, 0.5),
    C.contrast: (0.4, 0.3, 0.2, 0.1, 0.05),
    # 244 and not 224 is what the published images were made with.
    C.elastic_transform: (
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ),
    C.pixelate: (0.6, 0.5, 0.4, 0.3, 0.25),
    C.jpeg_compression: (25, 18, 15, 10, 7),
}
_FOR_64: dict[Corruption, tuple[Any, ...]] = {
    C.gaussian_noise: (0.04, 0.08, 0.12, 0.15, 0.18),
    C.shot_noise: (250, 100, 50, 30, 15),
    C.impulse_noise: (0.01, 0.02, 0.05, 0.08, 0.14),
    C.defocus_blur: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    C.glass_blur: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    C.motion_blur: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    C.zoom_blur: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    C.snow: (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    C.frost: ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    C.fog: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    C.brightness: (0.1, 0.2, 0.3, 0.4, 0.5),
    C.contrast: (0.4, 0.3, 0.2, 0.1, 0.05),
    C.elastic_transform: (
        (0, 0, 64 * 0.08),
        (64 * 0.05, 64 * 0.3, 64 * 0.06),
        (64 * 0.1, 64 * 0.08, 64 * 0.06),
        (64 * 0.1, 64 * 0.03, 64 * 0.03),
        (64 * 0.16, 64 * 0.03, 64 * 0.02),
    ),
    C.pixelate: (0.9, 0.8, 0.7, 0.6, 0.5),
    C.jpeg_compression: (65, 58, 50, 40, 25),
}
_FOR_32: dict[Corruption, tuple[Any, ...]] = {
    C.gaussian_noise: (0.04, 0.06, 0.08, 0.09, 0.10),
    C.shot_noise: (500, 250, 100, 75, 50),
    C.impulse_noise: (0.01, 0.02, 0.03, 0.05, 0.07),
    C.defocus_blur: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    C.glass_blur: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    C.motion_blur: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    C.zoom_blur: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    C.snow: (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    C.frost: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    C.fog: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    C.brightness: (0.05, 0.1, 0.15, 0.2, 0.3),
    C.contrast: (0.75, 0.5, 0.4, 0.3, 0.15),
    C.elastic_transform: (
        (0, 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ),
    C.pixelate: (0.95, 0.9, 0.85, 0.75, 0.65),
    C.jpeg_compression: (80, 65, 58, 50, 40),
}
_TABLES = {32: _FOR_32, 64: _FOR_64, 224: _FOR_224}


def published_size(side: int) -> int:
    """Which of the published sizes is nearest to ``side`` pixels in ratio."""
    return min(SIZES, key=lambda size: max(size / side, side / size))


def constants(corruption: Corruption, severity: int, side: int) -> Any:
    """The numbers of ``corruption`` at ``severity`` for images of ``side`` pixels.

    Raises:
        ValueError: the severity is not 1 to 5.
    """
    if severity not in range(1, 6):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity}")
    return _TABLES[published_size(side)][corruption][severity - 1]
