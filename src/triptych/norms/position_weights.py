"""DTN's position weights: which neighbours a token takes its statistics from, for each head.

The score of source i for target j is quadratic in the offset and has no cross term, so its
softmax over a full grid is a Kronecker product P = P_y ⊗ P_x of two small matrices.

Shapes: H heads, Y rows, X columns, S sources and T targets along one axis or over the whole grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from triptych.tokens import TokenGrid

INITS = ("locality", "released")


class PositionWeights(nn.Module):
    """Three learned numbers a head that define its position weights (DTN paper, R·a).

    ``weight`` (H, 3) holds, as in the official state dict, the factors of x_j - x_i, of
    y_j - y_i and of the squared distance, for source i and target j in units of tokens. It is
    not a ``Linear``, so a backbone that initializes its linear layers leaves it alone. The
    official score bias cancels in the softmax; it is accepted in a state dict and dropped.

    Args:
        num_heads: number of heads H.
        sequence: whether the tokens form a sequence, where the second factor is unused.
        init: "locality" (each head looks at one neighbouring offset) or "released" (normal
            with standard deviation 0.02, from which the published models in fact start).

    Raises:
        ValueError: ``init`` is another word.
    """

    def __init__(self, num_heads: int, *, sequence: bool = False, init: str = "locality") -> None:
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init must be 'locality' or 'released', got {init!r}")
        self.sequence = sequence
        self.init = init
        self.weight = nn.Parameter(torch.empty(num_heads, 3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw or set the weights anew as ``init`` says."""
        with torch.no_grad():
            if self.init == "released":
                nn.init.trunc_normal_(self.weight, std=0.02)
                return
            self.weight.copy_(locality_weights(len(self.weight), sequence=self.sequence))

    def axis_scores(self, grid: TokenGrid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scores along y, (H, Y, Y), and along x, (H, X, X), as [head, source, target]."""
        along_x_H, along_y_H, squared_H = self.weight.to(dtype).unbind(1)
        return (
            axis_scores(along_y_H, squared_H, grid.height),
            axis_scores(along_x_H, squared_H, grid.width),
        )

    def kernels(self, grid: TokenGrid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """P_y (H, Y, Y) and P_x (H, X, X) as [head, source, target]; columns sum to 1."""
        scores_y_HYY, scores_x_HXX = self.axis_scores(grid, dtype)
        return scores_y_HYY.softmax(1), scores_x_HXX.softmax(1)

    def log_partition(self, grid: TokenGrid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Logarithms of the partition functions, log Z_y (H, Y) and log Z_x (H, X), by target.

        A source outside the grid with score c takes the share
        sigmoid(c - log Z_y(y_j) - log Z_x(x_j)) of target j.
        """
        scores_y_HYY, scores_x_HXX = self.axis_scores(grid, dtype)
        return scores_y_HYY.logsumexp(1), scores_x_HXX.logsumexp(1)

    def matrix(self, grid: TokenGrid, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole P, (H, S, T) as [head, source, target] with tokens in row-major order."""
        kernel_y_HYY, kernel_x_HXX = self.kernels(grid, dtype)
        matrix = torch.einsum("hij,hkl->hikjl", kernel_y_HYY, kernel_x_HXX)
        return matrix.reshape(-1, grid.count, grid.count)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(prefix + "bias", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"num_heads={len(self.weight)}, init={self.init!r}"


def axis_scores(linear_H: Tensor, squared_H: Tensor, length: int) -> Tensor:
    """linear·δ + squared·δ² with δ = target - source along one axis, (H, S, T)."""
    position_S = torch.arange(length, device=linear_H.device, dtype=linear_H.dtype)
    offset_ST = position_S[None, :] - position_S[:, None]
    return linear_H[:, None, None] * offset_ST + squared_H[:, None, None] * offset_ST.square()


def token_scores(weight_H3: Tensor, index_MK: Tensor, grid: TokenGrid) -> Tensor:
    """Scores (M, H, S, T) between all pairs of the K tokens listed in ``index_MK``."""
    row_MK = (index_MK // grid.width).to(weight_H3.dtype)
    column_MK = (index_MK % grid.width).to(weight_H3.dtype)
    along_x_MST = column_MK[:, None, :] - column_MK[:, :, None]
    along_y_MST = row_MK[:, None, :] - row_MK[:, :, None]
    squared_MST = along_x_MST.square() + along_y_MST.square()
    offsets_M3P = torch.stack((along_x_MST, along_y_MST, squared_MST), 1).flatten(2)
    return (weight_H3 @ offsets_M3P).view(len(index_MK), -1, *squared_MST.shape[1:])


def locality_weights(num_heads: int, *, sequence: bool = False) -> Tensor:
    """Weights (H, 3) with which head k looks, Gaussian-weighted, at the offset -Δ_k.

    P ∝ exp(-|(p_j - p_i) - Δ_k|²), hence the weights [2Δx, 2Δy, -1].
    """
    offsets = sequence_offsets(num_heads) if sequence else grid_offsets(num_heads)
    return torch.tensor([[2 * dx, 2 * dy, -1.0] for dx, dy in offsets])


def grid_offsets(num_heads: int) -> list[tuple[float, float]]:
    """One offset (Δx, Δy) a head: the ``num_heads`` nearest the centre of a square of offsets.

    The square has side K = ceil(√num_heads). A square number of heads takes all of it, in the
    order of the official code (y fastest). Of equally near ones, opposite offsets come together,
    so that the heads balance.
    """
    side = math.isqrt(num_heads - 1) + 1
    centre = (side - 1) / 2
    square = [(column - centre, row - centre) for column in range(side) for row in range(side)]
    last = len(square) - 1
    nearest = sorted(
        range(len(square)), key=lambda k: (math.hypot(*square[k]), min(k, last - k), k)
    )
    return [square[k] for k in sorted(nearest[:num_heads])]


def sequence_offsets(num_heads: int) -> list[tuple[float, float]]:
    """One offset (Δ, 0) a head, at distance 1 from each other and centred on 0."""
    return [(head - (num_heads - 1) / 2, 0.0) for head in range(num_heads)]
