"""Targets and losses of masked image modelling.

Shapes: B batch, L mask units in row-major order, M hidden units of the whole batch, u pixels on a
side of a unit, E = u · u · channels values of a unit in the order (row, column, channel).

Only hidden units are predicted and compared: the mean over them is the masked mean of the papers,
without the work on units that the mask would multiply by zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-6


def patchify(images: Tensor, unit: int) -> Tensor:
    """Cut images (B, channels, H, W) into units (B, L, unit · unit · channels).

    Raises:
        ValueError: a side is no multiple of ``unit``.
    """
    return _cut(images, unit).flatten(3).flatten(1, 2)


def select_patches(images: Tensor, unit: int, hidden_M: Tensor) -> Tensor:
    """The units ``hidden_M`` (see :func:`hidden_units`) alone, (M, unit · unit · channels).

    Raises:
        ValueError: as :func:`patchify`.
    """
    cut = _cut(images, unit)
    rows, columns = cut.shape[1:3]
    image_M, unit_M = hidden_M // (rows * columns), hidden_M % (rows * columns)
    return cut[image_M, unit_M // columns, unit_M % columns].flatten(1)


def _cut(images: Tensor, unit: int) -> Tensor:
    """View (B, unit rows, unit columns, row, column, channel)."""
    height, width = images.shape[2:]
    if height % unit or width % unit:
        raise ValueError(
            f"images are {height}x{width}, but both sides must be multiples of the mask unit of "
            f"{unit} pixels"
        )
    cut = images.unflatten(3, (-1, unit)).unflatten(2, (-1, unit))
    return cut.permute(0, 2, 4, 3, 5, 1)


def hidden_units(mask_BL: Tensor) -> Tensor:
    """Numbers (M,) of the hidden units, counted through the batch: b · L + l, ascending.

    Make it of a mask in host memory: elsewhere the device has to be waited for.

    Raises:
        ValueError: nothing is hidden.
    """
    hidden_M = mask_BL.flatten().nonzero()[:, 0]
    _check_hidden(hidden_M, mask_BL)
    return hidden_M


def hidden_in_batch(hidden_PJ: Tensor, mask_BL: Tensor) -> Tensor:
    """:func:`hidden_units` of a planned mask, whose rows hide the units ``hidden_PJ``.

    P is 1 where all samples share a mask, else B. No value is read.

    Raises:
        ValueError: nothing is hidden.
    """
    _check_hidden(hidden_PJ.flatten(), mask_BL)
    batch, units = mask_BL.shape
    first_B1 = units * torch.arange(batch, device=hidden_PJ.device)[:, None]
    return (hidden_PJ + first_B1).flatten()


def _check_hidden(hidden_M: Tensor, mask_BL: Tensor) -> None:
    if not len(hidden_M):
        raise ValueError(
            f"mask hides none of the {mask_BL.shape[1]} mask units, so there is nothing to "
            f"reconstruct; hide at least one"
        )


def unpatchify(patches_BLE: Tensor, unit: int, unit_grid: tuple[int, int]) -> Tensor:
    """Put units (B, L, E) together to images (B, channels, H, W); the reverse of patchify.

    Raises:
        ValueError: the units are not ``unit_grid`` units of ``unit`` pixels on a side.
    """
    batch, count, values = patches_BLE.shape
    rows, columns = unit_grid
    if count != rows * columns or values % unit**2:
        raise ValueError(
            f"patches have shape {tuple(patches_BLE.shape)}, but {rows}x{columns} units of "
            f"{unit}x{unit} pixels need (B, {rows * columns}, a multiple of {unit**2})"
        )
    cut = patches_BLE.reshape(batch, rows, columns, unit, unit, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * unit, columns * unit)


@dataclass(frozen=True)
class UnitStatistics:
    """Mean and standard deviation of each unit's pixels, both (..., 1)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, patches: Tensor) -> UnitStatistics:
        """Of units (..., E): unbiased variance, plus 1e-6 under the root (MAE; GreenMIM)."""
        mean = patches.mean(-1, keepdim=True)
        std = (patches.var(-1, keepdim=True) + EPS).sqrt()
        return cls(mean, std)

    def normalize(self, patches: Tensor) -> Tensor:
        """Pixels to targets."""
        return (patches - self.mean) / self.std

    def denormalize(self, targets: Tensor) -> Tensor:
        """Targets to pixels."""
        return targets * self.std + self.mean


def mean_squared_error(prediction_ME: Tensor, target_ME: Tensor) -> Tensor:
    """Mean squared error over the pixels of hidden units (GreenMIM, MAE), 0-d."""
    return (prediction_ME - target_ME).square().mean()


def mean_absolute_error(prediction_ME: Tensor, target_ME: Tensor) -> Tensor:
    """Mean absolute error over the pixels of hidden units (SimMIM, arXiv 2111.09886), 0-d."""
    return (prediction_ME - target_ME).abs().mean()


def hidden_mse(prediction_BLE: Tensor, target_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    """The published form of :func:`mean_squared_error`: all units predicted, visible ones masked.

    It gives the same number for more work, and stands here to be compared with.
    """
    error_BL = (prediction_BLE - target_BLE).square().mean(2)
    return error_BL[mask_BL].mean()
