"""The tokens-to-token stages of T2T-ViT (Yuan et al. 2021, arXiv 2101.11986, §3.1).

Shapes: B batch, N tokens of a stage, P numbers of an overlapping patch, E the small width within
the stages, F random features, C channels of the backbone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

TOKEN_ATTENTIONS = ("performer", "transformer")


class PerformerAttention(nn.Module):
    """One-head attention by positive random features (Choromanski et al. 2021), linear in N.

    exp(q·k) is estimated by φ(q)·φ(k) with φ(x) = exp(w x - |x|²/2) / √F, for the F = E/2 rows of
    a fixed random ``w`` that are orthogonal to each other. The value is added to the output. The
    published layers also drop a tenth of their outputs in training; this one does not.
    """

    def __init__(self, patch_dim: int, dim: int) -> None:
        super().__init__()
        features = max(1, dim // 2)
        self.kqv = nn.Linear(patch_dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        rows_FE = nn.init.orthogonal_(torch.empty(features, dim)) * math.sqrt(features)
        self.w = nn.Parameter(rows_FE, requires_grad=False)

    def features(self, x_BNE: Tensor) -> Tensor:
        """φ(x), (B, N, F)."""
        half_square_BN1 = x_BNE.square().sum(-1, keepdim=True) / 2
        return (x_BNE @ self.w.mT - half_square_BN1).exp() / math.sqrt(len(self.w))

    def forward(self, x_BNP: Tensor) -> Tensor:
        k_BNE, q_BNE, v_BNE = self.kqv(x_BNP).chunk(3, -1)
        # exp of a sum over E terms: not in half precision.
        wide = torch.promote_types(x_BNP.dtype, torch.float32)
        with torch.autocast(device_type=x_BNP.device.type, enabled=False):
            k_BNF, q_BNF = self.features(k_BNE.to(wide)), self.features(q_BNE.to(wide))
            total_BN1 = q_BNF @ k_BNF.sum(1, keepdim=True).mT
            y_BNE = q_BNF @ (k_BNF.mT @ v_BNE.to(wide)) / (total_BN1 + 1e-8)
        return v_BNE + self.proj(y_BNE.to(v_BNE.dtype))


class FullAttention(nn.Module):
    """One-head softmax attention from patches to width E; the value is added to the output.

    Scores are divided by the root of the patch's width P, as published.
    """

    def __init__(self, patch_dim: int, dim: int) -> None:
        super().__init__()
        self.scale = patch_dim**-0.5
        self.qkv = nn.Linear(patch_dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BNP: Tensor) -> Tensor:
        q_BNE, k_BNE, v_BNE = self.qkv(x_BNP).chunk(3, -1)
        y_BNE = F.scaled_dot_product_attention(q_BNE, k_BNE, v_BNE, scale=self.scale)
        return v_BNE + self.proj(y_BNE)


class TokenStage(nn.Module):
    """A pre-norm layer from overlapping patches (B, N, P) to tokens (B, N, E)."""

    def __init__(self, patch_dim: int, dim: int, attention: str) -> None:
        super().__init__()
        performer = attention == "performer"
        self.norm1 = nn.LayerNorm(patch_dim)
        self.attn = (PerformerAttention if performer else FullAttention)(patch_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim)

    def forward(self, x_BNP: Tensor) -> Tensor:
        x_BNE = self.attn(self.norm1(x_BNP))
        return x_BNE + self.mlp(self.norm2(x_BNE))


class TokensToToken(nn.Module):
    """Images to tokens by soft splits (overlapping unfoldings) with a layer between any two.

    Args:
        image_size: (height, width) in pixels.
        kernels, strides: of each soft split; one layer follows each but the last.
        token_dim: width E of those layers.
        dim: width C of the tokens that come out.
        attention: "performer" or "transformer".

    Raises:
        ValueError: ``attention`` is another word, or the lists differ in length.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        channels: int,
        dim: int,
        kernels: Sequence[int],
        strides: Sequence[int],
        token_dim: int,
        attention: str,
    ) -> None:
        super().__init__()
        if attention not in TOKEN_ATTENTIONS:
            raise ValueError(
                f"token_attention must be one of {', '.join(TOKEN_ATTENTIONS)}, got {attention!r}"
            )
        if len(kernels) != len(strides):
            raise ValueError(
                f"kernels={list(kernels)} and strides={list(strides)} must name the same soft "
                f"splits, one entry each"
            )
        self.grids = split_grids(image_size, kernels, strides)
        self.splits = nn.ModuleList(
            nn.Unfold(kernel, padding=padding(kernel, stride), stride=stride)
            for kernel, stride in zip(kernels, strides, strict=True)
        )
        widths = [channels] + [token_dim] * (len(kernels) - 1)
        patch_dims = [width * kernel**2 for width, kernel in zip(widths, kernels, strict=True)]
        self.stages = nn.ModuleList(
            TokenStage(patch_dim, token_dim, attention) for patch_dim in patch_dims[:-1]
        )
        self.project = nn.Linear(patch_dims[-1], dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) in row-major order of images (B, channels, height, width)."""
        for split, stage, grid in zip(self.splits, self.stages, self.grids, strict=False):
            x_BNE = stage(split(x).transpose(1, 2))
            x = x_BNE.transpose(1, 2).unflatten(2, grid)
        return self.project(self.splits[-1](x).transpose(1, 2))


def padding(kernel: int, stride: int) -> int:
    """Zeros at each border of a soft split, so that sides shrink by the stride alone."""
    return (kernel - stride + 1) // 2


def split_grids(
    image_size: tuple[int, int], kernels: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """(height, width) in tokens after each soft split."""
    grids = []
    height, width = image_size
    for kernel, stride in zip(kernels, strides, strict=True):
        border = 2 * padding(kernel, stride) - kernel
        height, width = (height + border) // stride + 1, (width + border) // stride + 1
        grids.append((height, width))
    return grids
