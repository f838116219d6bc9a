"""The normalizers that DTN is compared with, as they stand in a transformer.

All take x (B, N, C) or (B, height, width, C), as a backbone hands it to its LayerNorm, and all
keep their gain in ``weight`` (C,). Those that look at other tokens look at all that x holds,
prefix tokens included. LayerNorm is torch's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """Divide each token by its root mean square (Zhang & Sennrich 2019); no mean, no bias."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__(dim, eps=eps)


class DyT(nn.Module):
    """Dynamic tanh, weight · tanh(alpha · x) + bias (Zhu et al. 2025): no statistics at all."""

    def __init__(self, dim: int, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addcmul(self.bias, torch.tanh(self.alpha * x), self.weight)
        return y.to(x.dtype)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization with statistics of each channel over batch and tokens.

    In training the biased batch variance, in evaluation the running statistics.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


class InstanceNorm(nn.Module):
    """Normalise each channel of a sample over its tokens, with the unbiased variance.

    Raises:
        ValueError: x holds a single token, which has no variance over tokens.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        x_BNC = x.flatten(1, -2)
        if x_BNC.shape[1] < 2:
            raise ValueError("InstanceNorm needs at least 2 tokens for a variance, got 1")
        x_BNC = x_BNC.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(x_BNC, 1, keepdim=True)
        z_BNC = (x_BNC - mean) * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias, z_BNC, self.weight).to(x.dtype).view(x.shape)


class GroupNorm(nn.GroupNorm):
    """Normalise each head's channels of a sample over channels and tokens; groups are heads."""

    def __init__(self, dim: int, num_heads: int, eps: float = 1e-5) -> None:
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"dim={dim} does not split into num_heads={num_heads} groups: dim must be a "
                f"multiple of num_heads"
            )
        super().__init__(num_heads, dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1).contiguous()


class ScaleNorm(nn.Module):
    """weight · x / ‖x‖₂ with a gain for each channel that starts at √C (Nguyen & Salazar 2019).

    ``eps`` is the least norm that a token is divided by.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.full((dim,), math.sqrt(dim)))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min(self.eps)
        return (wide / length * self.weight).to(x.dtype)
