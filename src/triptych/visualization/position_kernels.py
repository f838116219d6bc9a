"""What the position weights of DTN came to: kernels, their centres and widths, mixing ratios.

The score of a source at offset o from its target is -w·o + w₂|o|², so a kernel is the product of
one along y and one along x, and its moments and entropy follow from the two (DTN paper, R·a).

Shapes: H heads, Y rows, X columns, S sources along one axis, 2 and 3 as [y, x] and as the columns
of the position weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.norms import DynamicTokenNorm


@dataclass(frozen=True)
class PositionKernels:
    """From where each head of one DTN takes the statistics of one target token; in float64.

    Attributes:
        target: (row, column) of the target token.
        weights: (H, Y, X), share of each token of the grid; a head's shares sum to 1.
        centre: (H, 2), mean offset (dy, dx) of the sources from the target in tokens.
        widths: (H, 2), standard deviation of the offsets along y and x in tokens.
        effective: (H,), effective number of tokens, exp of the entropy: 1 to all of the grid.
    """

    target: tuple[int, int]
    weights: Tensor
    centre: Tensor
    widths: Tensor
    effective: Tensor

    @property
    def width(self) -> Tensor:
        """Root of the mean squared distance from the centre in tokens, (H,)."""
        return self.widths.square().sum(1).sqrt()


def dtn_layers(model: nn.Module) -> dict[str, DynamicTokenNorm]:
    """Every DynamicTokenNorm of ``model`` by its module path, in order; empty without one."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, DynamicTokenNorm)
    }


def position_kernels(
    norm: DynamicTokenNorm, target: tuple[int, int] | None = None
) -> PositionKernels:
    """The kernels of ``norm`` on its own grid, seen from ``target``, exactly.

    They are the column of the softmax-normalised position matrix that belongs to the target, so
    the border of the grid cuts them off as it does in the layer. Where the layer pools its tokens
    into cells, a cell's share is spread evenly over its tokens.

    Args:
        norm: on any device, in any dtype.
        target: (row, column) of the target token; by default the centre, (Y // 2, X // 2).

    Raises:
        ValueError: the target lies outside the grid.
    """
    grid, cell = norm.grid, norm.cell
    at = (grid.height // 2, grid.width // 2) if target is None else target
    if not (0 <= at[0] < grid.height and 0 <= at[1] < grid.width):
        raise ValueError(
            f"target {tuple(at)} lies outside the {grid} grid; legal are rows 0 to "
            f"{grid.height - 1} and columns 0 to {grid.width - 1}"
        )
    along_x_H, along_y_H, squared_H = position_parameters(norm).unbind(1)
    axes = (
        _axis_kernel(along_y_H, squared_H, grid.height, at[0], cell[0]),
        _axis_kernel(along_x_H, squared_H, grid.width, at[1], cell[1]),
    )
    moments = [_moments(share_HS, start) for share_HS, start in zip(axes, at, strict=True)]
    entropies = [torch.special.entr(share_HS).sum(1) for share_HS in axes]
    return PositionKernels(
        target=at,
        weights=axes[0][:, :, None] * axes[1][:, None, :],
        centre=torch.stack([centre for centre, _ in moments], 1),
        widths=torch.stack([width for _, width in moments], 1),
        effective=(entropies[0] + entropies[1]).exp(),
    )


def plane_kernels(norm: DynamicTokenNorm) -> tuple[Tensor, Tensor]:
    """The kernels without a border and without a lattice: Gaussians of the offset.

    Returns:
        Centre (dy, dx) and standard deviation along y and x, both (H, 2) float64 in tokens. They
        are nan for a head whose weight of the squared distance is not negative: it looks away
        from its target, and only the border ends its kernel.
    """
    along_x_H, along_y_H, squared_H = position_parameters(norm).unbind(1)
    curved_H1 = torch.where(squared_H < 0, squared_H, math.nan)[:, None]
    cell_2 = torch.tensor(norm.cell, dtype=curved_H1.dtype)
    centre_H2 = cell_2 * torch.stack((along_y_H, along_x_H), 1) / (2 * curved_H1)
    return centre_H2, cell_2 * (-0.5 / curved_H1).sqrt()


def mixing_ratios(norm: DynamicTokenNorm) -> tuple[Tensor, Tensor]:
    """λ of mean and variance, both (H,) float64: the share of the token's own statistics.

    1 for a mean that is not mixed (``mean="token"``); one and the same where they share a ratio.
    """
    mean_H, variance_H = norm.ratios(torch.float64)
    if mean_H is None:
        mean_H = torch.ones_like(variance_H)
    return mean_H.detach().cpu(), variance_H.detach().cpu()


def position_parameters(norm: DynamicTokenNorm) -> Tensor:
    """The factors (H, 3) of x_j - x_i, y_j - y_i and the squared distance, float64 on the CPU."""
    return norm.pos_proj.weight.detach().to("cpu", torch.float64)


def kernel_rows(layers: dict[str, DynamicTokenNorm]) -> list[dict[str, object]]:
    """One row per layer and head: ratios, kernel seen from the centre, its Gaussian, its weights.

    The last three numbers determine the kernel; lengths are in tokens of the layer's grid.
    """
    return [row for layer, norm in layers.items() for row in _layer_rows(layer, norm)]


def _layer_rows(layer: str, norm: DynamicTokenNorm) -> list[dict[str, object]]:
    kernels, parameters = position_kernels(norm), position_parameters(norm)
    mean_H, variance_H = mixing_ratios(norm)
    gaussian_centre, gaussian_widths = plane_kernels(norm)
    columns: dict[str, Tensor] = {
        "lambda_mean": mean_H,
        "lambda_variance": variance_H,
        "centre_y": kernels.centre[:, 0],
        "centre_x": kernels.centre[:, 1],
        "width_y": kernels.widths[:, 0],
        "width_x": kernels.widths[:, 1],
        "width": kernels.width,
        "effective_tokens": kernels.effective,
        "gaussian_centre_y": gaussian_centre[:, 0],
        "gaussian_centre_x": gaussian_centre[:, 1],
        "gaussian_width_y": gaussian_widths[:, 0],
        "gaussian_width_x": gaussian_widths[:, 1],
        "weight_x": parameters[:, 0],
        "weight_y": parameters[:, 1],
        "weight_squared_distance": parameters[:, 2],
    }
    place = {"layer": layer, "grid": str(norm.grid), "target": "{} {}".format(*kernels.target)}
    return [
        place | {"head": head} | {name: float(values[head]) for name, values in columns.items()}
        for head in range(norm.num_heads)
    ]


def _axis_kernel(
    linear_H: Tensor, squared_H: Tensor, length: int, target: int, cell: int
) -> Tensor:
    """Share (H, S) of each of ``length`` positions; the softmax is taken over cells."""
    position_C = torch.arange(length // cell, dtype=linear_H.dtype)
    offset_C = target // cell - position_C
    scores_HC = linear_H[:, None] * offset_C + squared_H[:, None] * offset_C.square()
    return (scores_HC.softmax(1) / cell).repeat_interleave(cell, 1)


def _moments(share_HS: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (H,) of the offset source - target."""
    offset_S = torch.arange(share_HS.shape[1], dtype=share_HS.dtype) - target
    mean_H = share_HS @ offset_S
    spread_HS = (offset_S - mean_H[:, None]).square()
    return mean_H, (share_HS * spread_HS).sum(1).sqrt()
