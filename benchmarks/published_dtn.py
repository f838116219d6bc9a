"""The published DTN computation, stated anew as the baseline: dense, for every sample by itself.

It follows the arithmetic and the order of work of the official code (papers and code of Shao et
al., ICLR 2022): position scores of all pairs of tokens are projected and soft-maxed for every
sample of the batch, and both moments are sums over all tokens.

Shapes: B batch, T tokens, H heads, D channels a head, C = H·D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PublishedDTN(nn.Module):
    """Released form, full-resolution statistics, square or other grid, no prefix tokens."""

    offsets: Tensor

    def __init__(self, dim: int, num_heads: int, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.eps = 1e-5
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.mean_norm_weight = nn.Parameter(torch.zeros(num_heads))
        self.var_norm_weight = nn.Parameter(torch.zeros(num_heads))
        self.pos_proj = nn.Linear(3, num_heads)
        self.register_buffer("offsets", _offsets(*grid_size), persistent=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        batch, count, dim = x_BTC.shape
        u_BTHD = x_BTC.view(batch, count, self.num_heads, -1)
        u_BTHD = u_BTHD / (u_BTHD.square().mean(-1, keepdim=True) + self.eps).sqrt()
        u_BTC = u_BTHD.view(batch, count, dim)
        own_mean_BT11 = u_BTC.mean(-1)[..., None, None]
        own_variance_BT11 = u_BTC.var(-1)[..., None, None]
        position_BHTT = self._position_weights(batch)
        u_BHTD = u_BTHD.transpose(1, 2)
        mean_BHTD = position_BHTT.mT @ u_BHTD
        variance_BHTD = position_BHTT.mT @ u_BHTD.square() - mean_BHTD.square()
        a_H1 = self.mean_norm_weight.sigmoid()[:, None]
        c_H1 = self.var_norm_weight.sigmoid()[:, None]
        mean = a_H1 * own_mean_BT11 + (1 - a_H1) * mean_BHTD.transpose(1, 2)
        variance = c_H1 * own_variance_BT11 + (1 - c_H1) * variance_BHTD.transpose(1, 2)
        z_BTHD = (u_BTHD - mean) / (variance + self.eps).sqrt()
        return z_BTHD.reshape(batch, count, dim) * self.weight + self.bias

    def _position_weights(self, batch: int) -> Tensor:
        """Softmax over sources, (B, H, source, target), made anew for every sample."""
        offsets_BTT3 = self.offsets.expand(batch, -1, -1, -1)
        return self.pos_proj(offsets_BTT3).permute(0, 3, 1, 2).softmax(2)


def _offsets(height: int, width: int) -> Tensor:
    """x, y and squared distance from source to target, (1, source, target, 3)."""
    token = torch.arange(height * width)
    row, column = token // width, token % width
    along_x = column[None, :] - column[:, None]
    along_y = row[None, :] - row[:, None]
    squared = along_x.square() + along_y.square()
    return torch.stack((along_x, along_y, squared), -1).float()[None]
