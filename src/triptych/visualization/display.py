"""From the tensors that a model sees to the arrays that a figure shows.

Shapes: B images, C channels (1 or 3), Y and X pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor


def unnormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the input normalisation of ``images`` (B, C, Y, X): the original [0, 1] pixels.

    Raises:
        ValueError: not four dimensions, neither 1 nor 3 channels, or another number of means.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images have shape {tuple(images.shape)}; "
            "give (images, channels, height, width) with 1 or 3 channels"
        )
    if not len(mean) == len(std) == images.shape[1]:
        raise ValueError(
            f"{len(mean)} means and {len(std)} standard deviations for {images.shape[1]} channels; "
            "give one of each for every channel"
        )
    shape = (1, -1, 1, 1)
    images = images.detach().float()
    return images * torch.tensor(std).view(shape).to(images) + torch.tensor(mean).view(shape).to(
        images
    )


def to_pixels(images: Tensor) -> np.ndarray:
    """Arrays (B, Y, X, C) on the CPU, clipped to [0, 1]."""
    return images.detach().float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def show_pixels(axes: Axes, pixels: np.ndarray) -> None:
    """Draw one image (Y, X, C) on a fixed [0, 1] scale, grey where it has one channel."""
    if pixels.shape[-1] == 1:
        axes.imshow(pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    else:
        axes.imshow(pixels)
