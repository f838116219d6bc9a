"""The published GreenMIM step for Swin, stated anew as the baseline.

It follows the arithmetic and the order of work of the released code (Huang et al., NeurIPS 2022,
arXiv 2205.13515): one mask for the batch, the patch embedding of the whole image, groups planned
in Python before each stage, whole blocks on padded groups, the attention matrix and its bias made
in every block, and a decoder that predicts every unit. Latents are placed in row-major order:
where the released code puts them changes no cost.

Shapes: B batch, N visible tokens, C channels, n groups, g slots of a group, H heads, L mask units,
K visible ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.mim.decoder import DecoderSettings, sincos_positions
from triptych.mim.objective import patchify

BARRED = -100.0
EPS = 1e-6


def knapsack(sizes: list[int], room: int) -> list[int]:
    """Positions of the windows that fill ``room`` as well as any can, by the textbook table."""
    table = [[0] * (room + 1) for _ in range(len(sizes) + 1)]
    for i, size in enumerate(sizes, start=1):
        before, now = table[i - 1], table[i]
        for r in range(room + 1):
            now[r] = before[r]
            if size <= r and before[r - size] + size > now[r]:
                now[r] = before[r - size] + size
    chosen = []
    for i in range(len(sizes), 0, -1):
        if table[i][room] != table[i - 1][room]:
            chosen.append(i - 1)
            room -= sizes[i - 1]
    return chosen


def group_windows(counts: list[int], capacity: int) -> list[list[int]]:
    """Fill groups one by one, each from the windows that are left."""
    left, groups = list(range(len(counts))), []
    while left:
        chosen = set(knapsack([counts[window] for window in left], capacity))
        groups.append([window for i, window in enumerate(left) if i in chosen])
        left = [window for i, window in enumerate(left) if i not in chosen]
    return groups


@dataclass(frozen=True)
class Groups:
    """Token of each slot (n, g), slot of each token (N); table row and bar of each pair."""

    tokens: Tensor
    slots: Tensor
    relative_ngg: Tensor
    barred_ngg: Tensor


def plan_groups(coordinates_N2: Tensor, size: int, shift: int) -> Groups:
    """Groups of one kind of window; one group of all where at most two windows' worth is left."""
    window_N2 = torch.div(coordinates_N2 + (size - shift) % size, size, rounding_mode="floor")
    window_N = window_N2[:, 0] * (int(window_N2[:, 1].max()) + 1) + window_N2[:, 1]
    count = len(window_N)
    if count <= 2 * size**2:
        order_N = torch.arange(count, device=window_N.device)
        return _groups(order_N[None], order_N, window_N, coordinates_N2, size)
    order_N = torch.argsort(window_N, stable=True)
    _, counts = torch.unique_consecutive(window_N[order_N], return_counts=True)
    sizes = counts.tolist()
    capacity = min(size**2, max(sizes))
    parts = order_N.split(sizes)
    rows, slot_N = [], torch.empty_like(window_N)
    for number, group in enumerate(group_windows(sizes, capacity)):
        tokens = torch.cat([parts[window] for window in group])
        slot_N[tokens] = number * capacity + torch.arange(len(tokens), device=tokens.device)
        rows.append(F.pad(tokens, (0, capacity - len(tokens)), value=-1))
    return _groups(torch.stack(rows), slot_N, window_N, coordinates_N2, size)


def _groups(
    token_ng: Tensor, slot_N: Tensor, window_N: Tensor, coordinates_N2: Tensor, size: int
) -> Groups:
    pad_ng = token_ng < 0
    token_ng = token_ng.clamp(min=0)
    window_ng = window_N[token_ng].masked_fill(pad_ng, -1)
    offset_ngg2 = coordinates_N2[token_ng][:, :, None] - coordinates_N2[token_ng][:, None]
    barred_ngg = (window_ng[:, :, None] != window_ng[:, None]) | pad_ng[:, :, None]
    offset_ngg2 = offset_ngg2.masked_fill(barred_ngg[..., None], 0) + size - 1
    relative_ngg = offset_ngg2[..., 0] * (2 * size - 1) + offset_ngg2[..., 1]
    return Groups(token_ng, slot_N, relative_ngg, barred_ngg)


def run_block(block: Any, x_BNC: Tensor, groups: Groups) -> Tensor:
    """Gather into padded groups, run the whole block there, and scatter back."""
    batch, _, dim = x_BNC.shape
    count, slots = groups.tokens.shape
    x = x_BNC[:, groups.tokens.flatten()].reshape(batch * count, slots, dim)
    x = x + attend(block.attn, block.norm1(x), groups)
    x = x + block.mlp(block.norm2(x))
    return x.reshape(batch, count * slots, dim)[:, groups.slots]


def attend(attn: Any, x: Tensor, groups: Groups) -> Tensor:
    """Attention with its matrix in memory; ``x`` is (B·n, g, C)."""
    rows, slots, dim = x.shape
    count = len(groups.tokens)
    qkv = attn.qkv(x).reshape(rows, slots, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    logits = (q * attn.scale) @ k.mT
    bias_ngg_H = attn.relative_position_bias_table[groups.relative_ngg.flatten()]
    bias_nggH = bias_ngg_H.view(count, slots, slots, -1)
    bias_nggH = bias_nggH.masked_fill(groups.barred_ngg[..., None], 0)
    bias_nggH = bias_nggH + BARRED * groups.barred_ngg[..., None]
    logits = logits.view(-1, count, attn.num_heads, slots, slots) + bias_nggH.permute(0, 3, 1, 2)
    weights = logits.softmax(-1).view(rows, attn.num_heads, slots, slots)
    return attn.proj((weights @ v).transpose(1, 2).reshape(rows, slots, dim))


def stage_groups(stage: Any, coordinates_N2: Tensor, least: int) -> tuple[Groups, Groups]:
    """Groups of the stage's even and odd blocks; ``least`` is the smaller side of its grid."""
    size = min(stage.blocks[0].window_size[0], least)
    even = plan_groups(coordinates_N2, size, 0)
    if least <= size or len(stage.blocks) == 1:
        return even, even
    return even, plan_groups(coordinates_N2, size, size // 2)


def merge_plan(coordinates_N2: Tensor) -> tuple[Tensor, Tensor]:
    """Order that puts the children of a parent side by side, and the parents' coordinates."""
    width = int(coordinates_N2[:, 1].max()) + 2
    parent_N2, child_N2 = coordinates_N2 // 2, coordinates_N2 % 2
    parent_N = parent_N2[:, 0] * width + parent_N2[:, 1]
    order_N = torch.argsort(parent_N * 4 + child_N2[:, 1] * 2 + child_N2[:, 0])
    return order_N, parent_N2[order_N[::4]]


def merge(merging: Any, x_BNC: Tensor, order_N: Tensor) -> Tensor:
    """Patch merging of visible tokens."""
    x = x_BNC[:, order_N].reshape(len(x_BNC), -1, 4 * x_BNC.shape[2])
    return merging.reduction(merging.norm(x))


class PublishedDecoder(nn.Module):
    """MAE's decoder; every unit is predicted, the visible ones too."""

    positions: Tensor

    def __init__(
        self, latent_dim: int, grid: tuple[int, int], values: int, settings: DecoderSettings
    ) -> None:
        super().__init__()
        dim = settings.dim
        self.embed = nn.Linear(latent_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_positions(dim, grid)[None], persistent=False)
        blocks = [
            Block(dim, settings.num_heads, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=EPS))
            for _ in range(settings.depth)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head = nn.Linear(dim, values)

    def forward(self, latents_BKC: Tensor, mask_L: Tensor) -> Tensor:
        x_BKD = self.embed(latents_BKC)
        rank_L = torch.argsort(torch.argsort(mask_L.int(), stable=True))
        hidden_BMD = self.mask_token.expand(len(x_BKD), len(mask_L) - x_BKD.shape[1], -1)
        x_BLD = torch.cat((x_BKD, hidden_BMD), 1)[:, rank_L] + self.positions
        return self.head(self.norm(self.blocks(x_BLD)))


class PublishedGreenMIM(nn.Module):
    """A pre-training step as published; shares the modules of a timm Swin backbone."""

    def __init__(self, backbone: SwinTransformer, decoder: DecoderSettings | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        embed = backbone.patch_embed
        self.unit = embed.patch_size[0] * 2 ** (len(backbone.layers) - 1)
        self.grid = embed.img_size[0] // self.unit, embed.img_size[1] // self.unit
        values = self.unit**2 * embed.proj.in_channels
        settings = decoder or DecoderSettings()
        self.decoder = PublishedDecoder(backbone.num_features, self.grid, values, settings)

    def encode(self, images: Tensor, mask_L: Tensor) -> Tensor:
        """Latents (B, K, C) of the visible units."""
        x_BHWC = self.backbone.patch_embed(images)
        side = x_BHWC.shape[1] // self.grid[0]
        visible_HW = ~mask_L.view(self.grid).repeat_interleave(side, 0).repeat_interleave(side, 1)
        x_BNC = x_BHWC.flatten(1, 2)[:, visible_HW.flatten()]
        coordinates_N2 = visible_HW.nonzero()
        least = min(x_BHWC.shape[1:3])
        for number, stage in enumerate(self.backbone.layers):
            if number:
                order_N, coordinates_N2 = merge_plan(coordinates_N2)
                x_BNC = merge(stage.downsample, x_BNC, order_N)
                least //= 2
            groups = stage_groups(stage, coordinates_N2, least)
            for position, block in enumerate(stage.blocks):
                x_BNC = run_block(block, x_BNC, groups[position % 2])
        return self.backbone.norm(x_BNC)

    def plan(self, mask_L: Tensor) -> None:
        """All the planning of a step and nothing else."""
        patch = self.backbone.patch_embed.patch_size[0]
        side = self.unit // patch
        visible_HW = ~mask_L.view(self.grid).repeat_interleave(side, 0).repeat_interleave(side, 1)
        coordinates_N2 = visible_HW.nonzero()
        least = min(visible_HW.shape)
        for number, stage in enumerate(self.backbone.layers):
            if number:
                _, coordinates_N2 = merge_plan(coordinates_N2)
                least //= 2
            stage_groups(stage, coordinates_N2, least)

    def forward(self, images: Tensor, mask_L: Tensor) -> Tensor:
        """The loss of a step; ``mask_L`` is True at hidden units."""
        prediction_BLE = self.decoder(self.encode(images, mask_L), mask_L)
        target_BLE = patchify(images, self.unit)
        mean, variance = target_BLE.mean(2, keepdim=True), target_BLE.var(2, keepdim=True)
        target_BLE = (target_BLE - mean) / (variance + EPS).sqrt()
        error_BL = (prediction_BLE - target_BLE).square().mean(2)
        return (error_BL * mask_L).sum() / (mask_L.sum() * len(images))
