"""Decoders of masked image modelling: MAE's transformer and SimMIM's linear head.

Shapes: B batch, L mask units, K visible units, C channels of the encoder, D of the decoder,
F feature cells, E values of a unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6
BASE = 10_000.0


class LatentOrder(StrEnum):
    """How the decoder places latents.

    ``row_major``: the k-th latent belongs to the k-th visible unit in row-major order, which is
    how the encoder returns them. ``published``: GreenMIM's released code, which restores MAE's
    noise order although the latents are in row-major order, so that most of them land on a wrong
    unit.
    """

    row_major = "row_major"
    published = "published"


@dataclass(frozen=True)
class DecoderSettings:
    """Size of the decoder; the defaults are GreenMIM's."""

    dim: int = 512
    depth: int = 1
    num_heads: int = 16
    mlp_ratio: float = 4.0
    order: LatentOrder | str = LatentOrder.row_major


class TransformerDecoder(nn.Module):
    """Latents of the visible units to pixels of all units (MAE, section 3; GreenMIM).

    Latents and a learned mask token on the unit grid, fixed 2-D sine-cosine positions, plain
    transformer blocks with LayerNorm, and a linear layer.

    Args:
        latent_dim: channels C of the encoder.
        unit_grid: mask units (down, across).
        unit_values: values E of a unit.
        settings: size and order.

    Raises:
        ValueError: the width is no multiple of 4 or of the number of heads.
    """

    positions: Tensor  # (1, L, D)

    def __init__(
        self,
        latent_dim: int,
        unit_grid: tuple[int, int],
        unit_values: int,
        settings: DecoderSettings | None = None,
    ) -> None:
        super().__init__()
        settings = settings or DecoderSettings()
        self.order = LatentOrder(settings.order)
        dim = settings.dim
        if dim % settings.num_heads:
            raise ValueError(
                f"decoder dim {dim} is not a multiple of its {settings.num_heads} heads"
            )
        norm = partial(nn.LayerNorm, eps=EPS)
        self.embed = nn.Linear(latent_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        positions = sincos_positions(dim, unit_grid)[None]
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.Sequential(
            *(
                Block(
                    dim,
                    settings.num_heads,
                    settings.mlp_ratio,
                    qkv_bias=True,
                    norm_layer=norm,  # type: ignore[arg-type]
                )
                for _ in range(settings.depth)
            )
        )
        self.norm = norm(dim)
        self.head = nn.Linear(dim, unit_values)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(_init_linear)

    def forward(
        self, latents_BKC: Tensor, mask_BL: Tensor, ids_restore: Tensor | None = None
    ) -> Tensor:
        """Predict every unit.

        Args:
            latents_BKC: of the visible units, in row-major order.
            mask_BL: bool, True = hidden.
            ids_restore: (1, L) or (B, L), :func:`~triptych.mim.masks.restore_order` of the noise;
                needed by the published order, unused by the other.

        Returns:
            (B, L, E).

        Raises:
            ValueError: the published order without ``ids_restore``.
        """
        x_BKD = self.embed(latents_BKC)
        if self.order is LatentOrder.published:
            if ids_restore is None:
                raise ValueError("order='published' places latents by ids_restore; it is missing")
            x_BLD = self._by_noise(x_BKD, ids_restore)
        else:
            x_BLD = self._by_mask(x_BKD, mask_BL)
        x_BLD = x_BLD + self.positions.to(x_BLD.dtype)
        return self.head(self.norm(self.blocks(x_BLD)))

    def _by_mask(self, x_BKD: Tensor, mask_BL: Tensor) -> Tensor:
        rank_BL = (~mask_BL).cumsum(1).sub_(1).clamp_(min=0)
        placed = x_BKD.gather(1, rank_BL[..., None].expand(-1, -1, x_BKD.shape[2]))
        return torch.where(mask_BL[..., None], self.mask_token.to(x_BKD.dtype), placed)

    def _by_noise(self, x_BKD: Tensor, ids_restore: Tensor) -> Tensor:
        batch, visible, dim = x_BKD.shape
        units = ids_restore.shape[1]
        hidden = self.mask_token.to(x_BKD.dtype).expand(batch, units - visible, -1)
        index = ids_restore.to(x_BKD.device)[..., None].expand(batch, -1, dim)
        return torch.cat((x_BKD, hidden), 1).gather(1, index)


class PixelShuffleHead(nn.Module):
    """SimMIM's head: a linear layer on each feature cell, whose values become its pixels.

    Args:
        dim: channels C of the features.
        stride: pixels on a side of a feature cell.
        channels: of the images.
    """

    def __init__(self, dim: int, stride: int, channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Linear(dim, channels * stride**2)

    def forward(self, features_BFC: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features (B, F, C) of a row-major ``grid`` of cells to images (B, channels, H, W)."""
        values = self.linear(features_BFC).transpose(1, 2).unflatten(2, grid)
        return F.pixel_shuffle(values, self.stride)


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed positions (rows · columns, dim), float32: half encodes the column, half the row.

    Each half is sin, then cos, of the coordinate times 10000^(-i / (dim / 4)).

    Raises:
        ValueError: ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"positions need a width that is a multiple of 4, got {dim}")
    frequency = BASE ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    halves = [
        wave(coordinate.reshape(-1, 1) * frequency)
        for coordinate in (column, row)
        for wave in (torch.sin, torch.cos)
    ]
    return torch.cat(halves, 1).float()


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
