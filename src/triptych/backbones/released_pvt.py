"""The Pyramid Vision Transformer (Wang et al. 2021) as the released DTN code has it.

Shapes: B batch, N tokens of a stage, C channels, height and width in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import DropPath, Mlp
from timm.models.pvt_v2 import Attention
from torch import Tensor, nn

from triptych.backbones.released_vit import growing_rates, init_linear
from triptych.norms.sites import NormSites, block_sites


class PvtPatchEmbed(nn.Module):
    """Non-overlapping patches with LayerNorm: images or maps (B, C', H, W) → (B, N, C)."""

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class PvtBlock(nn.Module):
    """Pre-norm block whose attention reduces keys and values ``sr_ratio`` times a side."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        sr_ratio: int,
        qkv_bias: bool,
        eps: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=eps)
        self.norm1 = norm(dim)
        self.attn = Attention(dim, num_heads=num_heads, sr_ratio=sr_ratio, qkv_bias=qkv_bias)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
        x_BNC = x_BNC + self.drop_path(self.attn(self.norm1(x_BNC), list(grid)))
        return x_BNC + self.drop_path(self.mlp(self.norm2(x_BNC)))


class ReleasedPvt(nn.Module):
    """PVT v1, with a class token in the last stage, as in the official DTN code.

    The last stage keeps LayerNorm, all others can have their norms replaced. The state dict has
    the official names (patch_embed1, pos_embed1, block1.0.norm1, …).

    Args:
        image_size: (height, width) in pixels, a multiple of the total stride.
        patch_size: stride of the first stage; each further one halves the grid.
        embed_dims, depths, num_heads, mlp_ratios, sr_ratios: one entry for each stage.
        eps: of the blocks' and the final LayerNorm; 1e-6 in the published models.
        drop_path: greatest rate of stochastic depth, which grows linearly from 0.

    Raises:
        ValueError: the last stage, which holds the class token, reduces its keys.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratios: Sequence[float],
        sr_ratios: Sequence[int],
        patch_size: int = 4,
        channels: int = 3,
        num_classes: int = 1000,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if sr_ratios[-1] != 1:
            raise ValueError(
                f"sr_ratios={list(sr_ratios)} reduces the keys of the last stage, whose class "
                f"token lies on no grid; its last entry must be 1"
            )
        self.num_classes, self.depths, self.num_heads = num_classes, tuple(depths), num_heads
        self.grids = stage_grids(image_size, patch_size, len(depths))
        rates = iter(growing_rates(drop_path, sum(depths)))
        for stage, dim in enumerate(embed_dims):
            options = (num_heads[stage], mlp_ratios[stage], sr_ratios[stage], qkv_bias, eps)
            blocks = [PvtBlock(dim, *options, next(rates)) for _ in range(depths[stage])]
            embed = PvtPatchEmbed(2 if stage else patch_size, channels, dim)
            tokens = math.prod(self.grids[stage]) + (stage == len(depths) - 1)
            self.add_module(f"patch_embed{stage + 1}", embed)
            self.register_parameter(
                f"pos_embed{stage + 1}", nn.Parameter(torch.zeros(1, tokens, dim))
            )
            self.add_module(f"block{stage + 1}", nn.ModuleList(blocks))
            channels = dim
        self.norm = nn.LayerNorm(embed_dims[-1], eps=eps)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims[-1]))
        self.head = nn.Linear(embed_dims[-1], num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal of 0.02 for linear layers, class token and position embeddings."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith(("pos_embed", "cls_token")):
                nn.init.trunc_normal_(parameter, std=0.02)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, channels, *image_size)."""
        return self.head(self.norm(self.forward_stages(x)[-1])[:, 0])

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Tokens (B, N, C) of each stage, in the last with the class token first."""
        stages = []
        for stage, grid in enumerate(self.grids, 1):
            x_BNC = self.get_submodule(f"patch_embed{stage}")(x)
            if stage == len(self.grids):
                x_BNC = torch.cat((self.cls_token.expand(len(x), -1, -1), x_BNC), 1)
            x_BNC = x_BNC + self.get_parameter(f"pos_embed{stage}")
            for block in self.get_submodule(f"block{stage}").children():
                x_BNC = block(x_BNC, grid)
            stages.append(x_BNC)
            if stage < len(self.grids):
                x = x_BNC.transpose(1, 2).unflatten(2, grid)
        return stages

    def norm_sites(self) -> NormSites:
        """Both norms of every block; by default the last stage's stay plain, as released."""
        last = len(self.depths) - 1
        return NormSites(
            [
                block_sites(
                    self,
                    f"block{stage + 1}.{index}",
                    num_heads=self.num_heads[stage],
                    grid_size=self.grids[stage],
                    prefix_tokens=int(stage == last),
                )
                for stage, depth in enumerate(self.depths)
                for index in range(depth)
            ],
            self.depths[-1],
        )

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Layers by depth, as timm's models name them for layer-wise learning rates."""
        return {
            "stem": r"^(?:patch_embed1|pos_embed1)\b",
            "blocks": [
                (r"^(?:patch_embed|pos_embed)(\d+)", (0,)),
                (r"^block(\d+)\.(\d+)", None),
                (r"^(?:norm|cls_token)", (99999,)),
            ],
        }


def stage_grids(image_size: tuple[int, int], patch_size: int, stages: int) -> list[tuple[int, int]]:
    """(height, width) in tokens of each stage."""
    height, width = image_size
    strides = [patch_size * 2**stage for stage in range(stages)]
    return [(height // stride, width // stride) for stride in strides]
