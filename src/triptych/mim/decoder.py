"""Decoders of masked image modelling: MAE's transformer and SimMIM's linear head.

Shapes: B batch, L mask units, K visible units, A prefix tokens, J hidden units of one image, M
those of the whole batch, C channels of the encoder, D of the decoder, F feature cells, E values of
a unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import cast

import torch
from timm.layers import Attention
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
    """Latents of the visible units to pixels of hidden ones (MAE, section 3; GreenMIM).

    Latents and a learned mask token on the unit grid, fixed 2-D sine-cosine positions, plain
    transformer blocks with LayerNorm, and a linear layer. In the last block visible units are
    keys and values alone: nothing reads what would become of them.

    Args:
        latent_dim: channels C of the encoder; None if latents already have the decoder's width.
        unit_grid: mask units (down, across).
        unit_values: values E of a unit.
        settings: size and order.
        prefix_tokens: tokens A (cls, registers) in front of the latents, which take part but
            have no position and predict nothing (MAE).

    Raises:
        ValueError: the width is no multiple of 4 or of the number of heads.
    """

    positions: Tensor  # (1, L, D)

    def __init__(
        self,
        latent_dim: int | None,
        unit_grid: tuple[int, int],
        unit_values: int,
        settings: DecoderSettings | None = None,
        prefix_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens
        settings = settings or DecoderSettings()
        self.order = LatentOrder(settings.order)
        dim = settings.dim
        if dim % settings.num_heads:
            raise ValueError(
                f"decoder dim {dim} is not a multiple of its {settings.num_heads} heads"
            )
        norm = partial(nn.LayerNorm, eps=EPS)
        self.embed = nn.Identity() if latent_dim is None else nn.Linear(latent_dim, dim)
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
        self,
        latents_BKC: Tensor,
        mask_BL: Tensor,
        ids_restore: Tensor | None = None,
        hidden_M: Tensor | None = None,
    ) -> Tensor:
        """Predict the hidden units, or every unit.

        Args:
            latents_BKC: of the visible units, in row-major order; (B, A + K, C) with A prefix
                tokens.
            mask_BL: bool, True = hidden, in each row all but K.
            ids_restore: (1, L) or (B, L), :func:`~triptych.mim.masks.restore_order` of the noise;
                needed by the published order, unused by the other.
            hidden_M: :func:`~triptych.mim.objective.hidden_units` of the mask, if only these are
                wanted.

        Returns:
            (M, E), or (B, L, E) without ``hidden_M``.

        Raises:
            ValueError: the published order without ``ids_restore``.
        """
        x_BKD = self.embed(latents_BKC)
        prefix_BAD, x_BKD = x_BKD[:, : self.prefix_tokens], x_BKD[:, self.prefix_tokens :]
        if self.order is LatentOrder.published:
            if ids_restore is None:
                raise ValueError("order='published' places latents by ids_restore; it is missing")
            x_BLD = self._by_noise(x_BKD, ids_restore)
        else:
            x_BLD = self._by_mask(x_BKD, mask_BL)
        place_BJ = None if hidden_M is None else hidden_M.view(len(x_BLD), -1) % x_BLD.shape[1]
        x_BLD = torch.cat((prefix_BAD, x_BLD + self.positions.to(x_BLD.dtype)), 1)
        if place_BJ is None:
            return self.head(self.norm(self.blocks(x_BLD)))[:, self.prefix_tokens :]
        place_BJ = place_BJ + self.prefix_tokens
        return self.head(self.norm(self._run(x_BLD, place_BJ))).flatten(0, 1)

    def _run(self, x_BLD: Tensor, place_BJ: Tensor) -> Tensor:
        """All blocks, but of what the last one gives only the places ``place_BJ``, (B, J, D)."""
        if not len(self.blocks):
            return _take(x_BLD, place_BJ)
        x_BLD = self.blocks[:-1](x_BLD)
        return _attend_from(cast(Block, self.blocks[-1]), x_BLD, place_BJ)

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

    def forward(
        self, features_BFC: Tensor, grid: tuple[int, int], unit: int, hidden_M: Tensor
    ) -> Tensor:
        """Pixels (M, E) of the hidden units.

        Args:
            features_BFC: of a row-major ``grid`` of cells.
            grid: cells (down, across).
            unit: side of a mask unit in pixels, a multiple of the stride.
            hidden_M: see :func:`~triptych.mim.objective.hidden_units`.
        """
        side = unit // self.stride
        columns = grid[1] // side
        cells = features_BFC.unflatten(1, (grid[0] // side, side, columns, side)).transpose(2, 3)
        units = grid[0] // side * columns
        image_M, unit_M = hidden_M // units, hidden_M % units
        chosen = cells[image_M, unit_M // columns, unit_M % columns]  # (M, side, side, C)
        values = self.linear(chosen).unflatten(3, (-1, self.stride, self.stride))
        return values.permute(0, 1, 4, 2, 5, 3).flatten(1)


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


def _take(x_BLD: Tensor, place_BJ: Tensor) -> Tensor:
    return x_BLD.gather(1, place_BJ[..., None].expand(-1, -1, x_BLD.shape[2]))


def _attend_from(block: Block, x_BLD: Tensor, place_BJ: Tensor) -> Tensor:
    """The block's output at ``place_BJ`` alone, (B, J, D); every place is still attended to."""
    attention = cast(Attention, block.attn)
    y_BLD = block.norm1(x_BLD)
    dim = y_BLD.shape[2]
    query, key_value = attention.qkv.weight.split((dim, 2 * dim))
    query_bias, key_value_bias = attention.qkv.bias.split((dim, 2 * dim))
    q_BJD = F.linear(_take(y_BLD, place_BJ), query, query_bias)
    k_BLD, v_BLD = F.linear(y_BLD, key_value, key_value_bias).chunk(2, 2)
    heads = [
        t.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for t in (q_BJD, k_BLD, v_BLD)
    ]
    out_BJD = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    x_BJD = _take(x_BLD, place_BJ) + attention.proj(out_BJD)
    return x_BJD + block.mlp(block.norm2(x_BJD))


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
