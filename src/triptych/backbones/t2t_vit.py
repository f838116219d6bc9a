"""T2T-ViT (Yuan et al. 2021, arXiv 2101.11986), with the class token first or late.

Shapes: B batch, T tokens of the grid, N = T or T + 1, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from triptych.backbones.released_vit import (
    check_class_token,
    init_linear,
    late_class_token_sites,
    transformer_blocks,
)
from triptych.backbones.tokens_to_token import TokensToToken
from triptych.norms.sites import NormSites


class T2TViT(nn.Module):
    """Tokens-to-token stages, then a narrow and deep plain transformer.

    With ``class_token_at=0`` the published network; with ``depth - 2`` the class token joins
    before the last two blocks, as the released DTN code does in ViT, and the
    blocks before see nothing but the grid. LayerNorm stays in the tokens-to-token stages either
    way: their tokens are patches that still overlap, of one head.

    Args:
        image_size: (height, width) in pixels.
        class_token_at: the block before which the class token joins.
        kernels, strides, token_dim, token_attention: see :class:`TokensToToken`.
        drop_path: greatest rate of stochastic depth, which grows linearly from 0.

    Raises:
        ValueError: ``class_token_at`` is not a block, or see :class:`TokensToToken`.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        embed_dim: int,
        depth: int,
        num_heads: int,
        class_token_at: int,
        channels: int = 3,
        num_classes: int = 1000,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = False,
        kernels: Sequence[int] = (7, 3, 3),
        strides: Sequence[int] = (4, 2, 2),
        token_dim: int = 64,
        token_attention: str = "performer",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_class_token(class_token_at, depth)
        self.num_classes, self.class_token_at = num_classes, class_token_at
        self.tokens_to_token = TokensToToken(
            image_size=image_size,
            channels=channels,
            dim=embed_dim,
            kernels=kernels,
            strides=strides,
            token_dim=token_dim,
            attention=token_attention,
        )
        positions = math.prod(self.tokens_to_token.grids[-1]) + (class_token_at == 0)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        # Fixed, but a parameter as published: it counts and travels with the weights.
        self.pos_embed = nn.Parameter(sinusoid(positions, embed_dim)[None], requires_grad=False)
        self.blocks = transformer_blocks(
            embed_dim, depth, num_heads, mlp_ratio, qkv_bias, 1e-5, drop_path
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal of 0.02 for linear layers and class token."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, channels, *image_size)."""
        return self.head(self.norm(self.forward_tokens(x))[:, 0])

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) after the last block, the class token first."""
        x_BNC = self.tokens_to_token(x)
        cls_B1C = self.cls_token.expand(len(x), -1, -1)
        if self.class_token_at == 0:
            x_BNC = torch.cat((cls_B1C, x_BNC), 1)
        x_BNC = x_BNC + self.pos_embed
        for index, block in enumerate(self.blocks):
            if index and index == self.class_token_at:
                x_BNC = torch.cat((cls_B1C, x_BNC), 1)
            x_BNC = block(x_BNC)
        return x_BNC

    def norm_sites(self) -> NormSites:
        """Both norms of every backbone block; those that a late class token passes stay plain."""
        return late_class_token_sites(self, self.tokens_to_token.grids[-1], self.class_token_at)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Layers by depth, as timm's models name them for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|pos_embed|tokens_to_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


def sinusoid(positions: int, dim: int) -> Tensor:
    """Fixed position table (N, C): sines in even, cosines in odd channels."""
    channel_C = torch.arange(dim, dtype=torch.float64)
    frequency_C = 10000.0 ** (-2 * (channel_C // 2) / dim)
    angle_NC = torch.arange(positions, dtype=torch.float64)[:, None] * frequency_C
    return torch.where(channel_C % 2 == 0, angle_NC.sin(), angle_NC.cos()).float()
