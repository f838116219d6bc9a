"""Targets and losses of masked image modelling.

Shapes: B batch, L mask units in row-major order, u pixels on a side of a unit, E = u · u · channels
values of a unit in the order (row, column, channel).
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
    batch, _, height, width = images.shape
    if height % unit or width % unit:
        raise ValueError(
            f"images are {height}x{width}, but both sides must be multiples of the mask unit of "
            f"{unit} pixels"
        )
    cut = images.unflatten(3, (-1, unit)).unflatten(2, (-1, unit))
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, height // unit * (width // unit), -1)


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
    """Mean and standard deviation of each unit's pixels, both (B, L, 1)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, patches_BLE: Tensor) -> UnitStatistics:
        """Unbiased variance, plus 1e-6 under the root (MAE; GreenMIM)."""
        mean = patches_BLE.mean(2, keepdim=True)
        std = (patches_BLE.var(2, keepdim=True) + EPS).sqrt()
        return cls(mean, std)

    def normalize(self, patches_BLE: Tensor) -> Tensor:
        """Pixels to targets."""
        return (patches_BLE - self.mean) / self.std

    def denormalize(self, targets_BLE: Tensor) -> Tensor:
        """Targets to pixels."""
        return targets_BLE * self.std + self.mean


def hidden_mse(prediction_BLE: Tensor, target_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean squared error of each unit, averaged over the hidden units (GreenMIM, MAE).

    Raises:
        ValueError: nothing is hidden; where the mask lies on an accelerator it is an assertion
            on the device, which is not waited for.
    """
    return _hidden_mean((prediction_BLE - target_BLE).square(), mask_BL)


def hidden_l1(prediction_BLE: Tensor, target_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean absolute error over the pixels of hidden units (SimMIM, arXiv 2111.09886).

    Raises:
        ValueError: as :func:`hidden_mse`.
    """
    return _hidden_mean((prediction_BLE - target_BLE).abs(), mask_BL)


def _hidden_mean(error_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    if mask_BL.device.type != "cpu":
        torch._assert_async(mask_BL.any(), "mask hides no unit: there is nothing to reconstruct")
    elif not bool(mask_BL.any()):
        raise ValueError(
            f"mask hides none of the {mask_BL.shape[1]} mask units, so there is nothing to "
            f"reconstruct; hide at least one"
        )
    hidden_BL = mask_BL.to(error_BLE.dtype)
    return (error_BLE.mean(2) * hidden_BL).sum() / hidden_BL.sum()
